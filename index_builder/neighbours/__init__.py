"""Finds neighbours of training samples as a bank would have, and fits how neighbours are compared."""
