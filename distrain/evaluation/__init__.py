"""Evaluates one checkpoint of a run, sample by sample, in a separate run directory.

`request` resolves the request and `launch` runs it, without torch; `worker` evaluates on every rank; `results` reads
and writes the results, and `plots` draws them.
"""
