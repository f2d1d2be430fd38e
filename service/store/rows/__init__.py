"""Rows before they are stored: their fields, single rows, batches and tables of rows, and their outcomes."""
