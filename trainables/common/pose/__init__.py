"""Human poses for the lifting families: skeleton, data sources and their one entry, `data.open_poses`."""
