"""The parts of a session, each built from the recipe by one function, and the checks that they fit together."""
