"""The bank as the service uses it: watched, and growing with the traffic."""
