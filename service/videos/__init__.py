"""The handlers behind /videos and /predict, and what their requests and responses hold."""
