"""How rows come in (HTTP bodies, WebSockets, a Redis stream), and the group commit behind all of them."""
