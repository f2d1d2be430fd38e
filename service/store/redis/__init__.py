"""The Redis deployment: address, connections, cluster and Sentinel, health, embedded server."""
