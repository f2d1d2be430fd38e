"""HTTP routes. The routes only translate between HTTP and the handlers."""
