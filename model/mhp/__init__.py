"""The Mamba-Hawkes process: network and likelihood (training), and the backends that serve it."""
