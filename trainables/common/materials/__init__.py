"""What the material segmentation families share: scenes, spectra, data sets, networks and metrics."""
