"""distrain trains image models from one recipe, anywhere, and loses no work."""
