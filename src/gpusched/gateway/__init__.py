"""A gateway in front of live engines: the simulated policies, at work."""
