"""The network's inputs: tokens, summary and creator features, and the schema that names them."""
