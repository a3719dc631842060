"""Measuring a live engine: a short designed experiment, a fit of its iteration times, a check."""
