"""Ways to give a 2D pose to an unsupervised lifter: whole, in two or five parts, with or without shared features."""
