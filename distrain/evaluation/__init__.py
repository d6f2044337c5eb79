"""An evaluation: one checkpoint of a run, sample by sample, in a run directory of its own.

`request` says what is requested and `launch` runs it, without torch; `worker` evaluates on every rank; `results` is
what it leaves, and `plots` draws that.
"""
