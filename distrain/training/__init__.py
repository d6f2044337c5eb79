"""The training loop, and all that one step needs."""
