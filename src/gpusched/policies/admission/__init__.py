"""Admission: which waiting request starts its prefill, and when."""
