"""Sphinx configuration."""

project = "gpusched"
extensions = ["myst_parser"]
html_theme = "furo"
html_title = "gpusched"
exclude_patterns = ["_build"]
