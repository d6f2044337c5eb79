"""Hooks: the user's code that sees what happens in a training, and changes nothing."""
