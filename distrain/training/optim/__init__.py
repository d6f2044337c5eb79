"""Optimizers, their parameter groups and the averages of weights."""
