"""Parallel strategies, process groups, and the consensus on a stop."""
