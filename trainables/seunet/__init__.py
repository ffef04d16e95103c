"""SEUNet."""
