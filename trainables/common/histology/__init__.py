"""Stained tissue for the segmentation families: generated and real images, networks, metrics, inference."""
