"""Ranked lists of videos, kept in the store."""
