"""Metrics of an evaluation: which are computed, and how."""
