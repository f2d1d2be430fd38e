"""Growth curves of past videos."""
