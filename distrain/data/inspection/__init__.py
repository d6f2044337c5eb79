"""Inspection of image folders before a training: what is in them, what is wrong with them, and how they look."""
