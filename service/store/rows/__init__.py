"""Rows on their way to the store: their fields, one row, batches and tables of rows, and what became of them."""
