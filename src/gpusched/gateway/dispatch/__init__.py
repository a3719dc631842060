"""Admission and routing of live requests, and what is known of the engines."""
