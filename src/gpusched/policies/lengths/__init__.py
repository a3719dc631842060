"""Predicted output lengths: what schedulers know of a request before it ends."""
