"""Handles requests to /videos and /predict, and defines their request and response bodies."""
