"""The files of a run, and what can be read from them."""
