"""The doors that rows come in by, and the writer behind all of them."""
