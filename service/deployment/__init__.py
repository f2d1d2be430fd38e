"""A loaded model with its bank, its states and the circuit breaker around the bank."""
