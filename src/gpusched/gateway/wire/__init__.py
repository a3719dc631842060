"""Connections of clients and engines, and the bytes between them."""
