"""Extends torch's tensors and modules: shards, devices, state, values as text."""
