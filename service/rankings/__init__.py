"""Keeps ranked lists of videos in the store, and reads them in pages."""
