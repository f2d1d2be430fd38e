"""Ranked lists of videos: kept in the store, and read in pages."""
