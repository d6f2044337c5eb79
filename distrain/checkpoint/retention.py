"""Owns which checkpoints stay: the last k, the best one, and every n-th."""

from distrain.checkpoint.inventory import Entry, best_step


def superfluous(entries: list[Entry], *, keep_last: int, keep_best: bool, keep_every_steps: int | None) -> list[Entry]:
    """Return the checkpoints that need not stay, the oldest first."""
    kept = steps_to_keep(
        [(entry.step, entry.score) for entry in entries],
        keep_last=keep_last,
        keep_best=keep_best,
        keep_every_steps=keep_every_steps,
    )
    return [entry for entry in entries if entry.step not in kept]


def steps_to_keep(
    scores: list[tuple[int, float | None]], *, keep_last: int, keep_best: bool, keep_every_steps: int | None
) -> set[int]:
    """Return the steps whose checkpoints stay, of (step, score of the evaluation at that step) in any order."""
    steps = sorted(step for step, _ in scores)
    kept = set(steps[-keep_last:])
    best = best_step(scores)
    if keep_best and best is not None:
        kept.add(best)
    if keep_every_steps is not None:
        kept |= {step for step in steps if step % keep_every_steps == 0}
    return kept
