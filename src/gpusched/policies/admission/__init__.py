"""Admission: when a request may enter the fleet at all."""
