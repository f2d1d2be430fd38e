"""A video's text as vectors: a sentence embedding and hashed n-grams."""
