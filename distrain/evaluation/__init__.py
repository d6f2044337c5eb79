"""An examination: one checkpoint of a run, evaluated sample by sample, in a run directory of its own.

`order` says what is asked for and `start` has it done, without torch; `work` does it on every rank; `findings` is what
it leaves, and `pictures` draws that.
"""
