"""Live engines: how to start small ones, read their metrics and load them."""
