"""Decides which checkpoints are kept: the last k, the best one, and every n-th."""

from distrain.runs.checkpoints.catalog import Entry, find_best, strongest


def expired(entries: list[Entry], *, keep_last: int, keep_best: bool, keep_every_steps: int | None) -> list[Entry]:
    """Return the checkpoints to delete; `entries` and the result begin with the oldest.

    The best one is that of the run's best evaluation, or if it has no checkpoint, the one with the highest score.
    """
    kept = [*entries[-keep_last:]]
    best = find_best(entries) or strongest(entries)
    if keep_best and best is not None:
        kept.append(best)
    if keep_every_steps is not None:
        kept += [entry for entry in entries if entry.step % keep_every_steps == 0]
    return [entry for entry in entries if entry not in kept]
