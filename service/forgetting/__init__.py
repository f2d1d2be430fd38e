"""Deleted videos leave everything: banks, caches, lists, labels, streams and logs."""
