"""HTTP routes, which only translate between requests and handlers."""
