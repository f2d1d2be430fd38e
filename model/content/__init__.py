"""What a video shows and says, as vectors: sentence embedding and hashed n-grams."""
