"""HTTP routes: they only translate between requests and handlers."""
