"""A data set sent to a running service as a live stream."""
