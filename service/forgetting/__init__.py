"""Removes deleted videos from every place that holds them: banks, caches, ranked lists, labels, streams and logs."""
