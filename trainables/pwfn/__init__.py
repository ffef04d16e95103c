"""Probabilistic weight fixing networks."""
