"""Endpoint picker for the Gateway API inference extension: Envoy carries the bytes, we decide."""
