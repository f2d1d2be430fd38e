"""Receives rows from HTTP bodies, WebSockets and a Redis stream, and stores them in group commits."""
