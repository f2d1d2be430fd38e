"""The Mamba-Hawkes process: network and likelihood for training, states and backends for serving."""
