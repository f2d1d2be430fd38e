"""Data sets: their file format, and how they are read, checked and written."""
