"""A prefix cache over memory tiers, replayed on a trace without engines."""
