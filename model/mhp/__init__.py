"""The Mamba-Hawkes process: the network and its likelihood for training, and states and backends for serving."""
