"""Measures real steps of a recipe in a temporary run directory, for `distrain bench`, `plan` and `verify`.

`launch` runs a request, without torch; `worker` measures on every rank, in the sections of `timed_sections`;
`results` defines the results. `diagnosis`, `scaling_model` and `schedule_estimate` are pure functions of the results,
`scaling_run` measures several numbers of processes, and `plot` draws them.
"""
