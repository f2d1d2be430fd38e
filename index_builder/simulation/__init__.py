"""Generates synthetic data sets."""
