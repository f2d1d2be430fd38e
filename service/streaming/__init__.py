"""Sends each forecast to its subscribers whenever the forecast changes."""
