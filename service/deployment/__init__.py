"""A deployment is a loaded model with its bank, its cached states, and the circuit breaker around the bank."""
