"""Layers of one model over unequal nodes: placement, flow, bounds (Helix, arXiv 2406.01566)."""
