"""JetLOV: a network on the tree of a jet's splittings that learns its own variables instead of the Lund plane's."""
