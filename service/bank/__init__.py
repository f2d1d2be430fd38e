"""Admission to the bank: videos of the traffic enter it as they grow older."""
