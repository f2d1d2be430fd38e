"""The Redis deployment: address, connections, cluster and Sentinel, calls, the embedded server. Knows no key and no record."""
