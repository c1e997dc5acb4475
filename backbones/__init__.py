"""Video backbones behind one interface: a file a family."""
