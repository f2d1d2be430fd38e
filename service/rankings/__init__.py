"""Keeps ranked lists of videos in the store, and reads these lists in pages."""
