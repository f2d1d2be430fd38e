"""Access to Redis: connections, clusters, Sentinels, calls and the embedded server. This package knows nothing about keys or records."""
