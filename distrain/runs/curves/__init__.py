"""Curves of the metrics of a run, at any length of its history: `read_curves`, `list_keys`."""

from distrain.runs.curves.reading import Curve, Curves, list_keys, read_curves

__all__ = ["Curve", "Curves", "list_keys", "read_curves"]
