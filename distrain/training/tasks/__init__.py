"""Tasks: what is learned from a batch, and what of it is measured."""
