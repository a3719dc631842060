"""Small models of serving in which a theory is exact: no KV blocks, no iterations of one engine."""
