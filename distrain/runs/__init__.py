"""The files of a run, and all that can be read off them."""
