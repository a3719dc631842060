"""Which requests enter an engine's next iteration."""
