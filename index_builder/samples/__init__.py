"""Training samples and queries that are cut from a data set, and the inputs that the network reads for them."""
