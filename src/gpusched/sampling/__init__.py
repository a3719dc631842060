"""Decisions for one answer: how often to sample, whom to ask, which candidate to give."""
