"""Decides who may send which request: tokens, sessions, origins, limits, and what a request may name."""
