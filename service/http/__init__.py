"""HTTP, apart from the routes: bodies, answers, keys, limits, measurement."""
