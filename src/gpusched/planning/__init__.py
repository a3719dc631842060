"""Offline decisions: what to deploy."""
