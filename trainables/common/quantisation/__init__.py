"""What the families of networks with a few hundred distinct weights share."""
