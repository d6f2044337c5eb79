"""Inspects image data before training: what is in it, what is wrong with it, and how it looks."""
