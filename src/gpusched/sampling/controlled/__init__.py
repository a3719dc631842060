"""Decoding block by block towards the best worst value of several objectives."""
