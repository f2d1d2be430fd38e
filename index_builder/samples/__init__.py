"""Training samples and queries cut from a data set, and the inputs that the network reads for them."""
