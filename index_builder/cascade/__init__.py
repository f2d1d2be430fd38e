"""The self-exciting cascade fitted to data."""
