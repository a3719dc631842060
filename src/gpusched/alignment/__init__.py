"""Training on several objectives at once: one update from many advantages."""
