"""Searches settings of a recipe: a controller outside the ranks suggests trials, which are ordinary runs."""
