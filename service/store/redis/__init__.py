"""Access to Redis: connections, clusters, Sentinels, calls and the embedded server. It knows nothing about keys or records."""
