"""A measurement: real steps of a recipe in a run directory that is gone afterwards, for `distrain bench` and `plan`.

`order` says what is asked for and `start` has it done, without torch; `work` does it on every rank, in the stretches
of `stretches`; `figures` is what it leaves. `verdict`, `scale` and `outlook` are pure functions of the figures,
`benchmark` measures several numbers of processes, and `plot` draws them.
"""
