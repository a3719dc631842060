"""How much of a prompt cache to hold in each hour, by the carbon it costs and saves."""
