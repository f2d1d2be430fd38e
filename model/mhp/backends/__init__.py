"""What computes the Mamba-Hawkes state online: one interface, a CPU and a CUDA backend."""
