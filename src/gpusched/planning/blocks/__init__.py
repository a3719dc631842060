"""Transformer blocks over servers far apart, and chains of servers for requests (arXiv 2512.21884)."""
