"""The parts of a session, each made from the recipe by a function of its own, and the checks that they go together."""
