"""Rotation-scale equivariant steerable filters: a UNet that is trained upright and turned when it is used."""
