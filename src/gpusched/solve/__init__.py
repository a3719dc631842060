"""Thin helpers over HiGHS and graph algorithms."""
