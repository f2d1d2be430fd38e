"""A video's text as vectors: sentence embedding and hashed n-grams."""
