"""Samples by index, from wherever they lie."""
