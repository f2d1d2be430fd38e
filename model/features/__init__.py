"""What the network reads: tokens, summary, creator, and the schema that names it all."""
