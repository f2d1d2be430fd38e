"""Draws training samples and queries from a data set, and computes the network's inputs for them."""
