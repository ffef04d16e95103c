"""TIPSy-GAN: unsupervised 2D to 3D pose lifting by independent parts."""
