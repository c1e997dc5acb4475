"""Latent codecs: the interface, and those that belong to no family."""
