"""Admits videos to the bank, so that the bank grows with the traffic."""
