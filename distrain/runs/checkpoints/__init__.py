"""Checkpoints: written completely or not at all, verified before they are read, and unable to run code.

A checkpoint is a folder `step-N`: the tensors in shards of torch.distributed.checkpoint, `state.json` with all numbers
and strings, and MANIFEST.json with the size and digest of every other file. It is written as `step-N.tmp` and renamed
once it is complete and on disk; only renamed folders are ever read.

This package needs no torch. The code that handles tensors is in `distrain.checkpoint`: `tensors` (what is saved),
`staging` and `writer` (saving), `load` (reading), `consolidate` (one file for other programs).
"""

from distrain.runs.checkpoints.catalog import Entry, choose, find_best, read_catalog, run_best_step, strongest
from distrain.runs.checkpoints.integrity import find_corruption, latest_valid
from distrain.runs.checkpoints.paths import Checkpoint, committed, final_path, newest_step, read, remove, remove_partial
from distrain.runs.checkpoints.retention import expired

__all__ = [
    "Checkpoint",
    "Entry",
    "choose",
    "committed",
    "expired",
    "final_path",
    "find_best",
    "find_corruption",
    "latest_valid",
    "newest_step",
    "read",
    "read_catalog",
    "remove",
    "remove_partial",
    "run_best_step",
    "strongest",
]
