"""Sorts runs by any of their values."""

from operator import itemgetter
from typing import Any

from distrain.config.metrics import ALWAYS_MEASURED, score
from distrain.runs.overview import Overview, find_values
from distrain.runs.value_formats import show_value

_BEST_FIRST = ("best", "loss")  # in these orders


def sort_runs(found: list[Overview], key: str, *, option: str = "--sort") -> list[Overview]:
    """Return the runs, which are ordered by `start`, in ascending order of the key, or descending with `-` before it.

    For `best` and `loss`, the best come first. Runs without a value come last. Raises `RunError`, which names the
    `option`, for a key that no run has.
    """
    name = key.removeprefix("-")
    is_descending = key != name
    if name == "start":
        return found[::-1] if is_descending else found
    values = [_rank(value) for value in find_values(found, name, option=option)]
    if name in _BEST_FIRST:
        metrics = [(o.best, o.brief.best_by) if name == "best" else (o.brief.last, ALWAYS_MEASURED) for o in found]
        scores = [
            None if evaluation is None else score(by, evaluation, o.brief.own_metrics)
            for o, (evaluation, by) in zip(found, metrics, strict=True)
        ]
        values = [None if value is None else (0, -value) for value in scores]
    pairs = list(zip(values, found, strict=True))
    ranked = [(value, overview) for value, overview in pairs if value is not None]
    ranked.sort(key=itemgetter(0), reverse=is_descending)
    return [overview for _, overview in ranked] + [overview for value, overview in pairs if value is None]


def _rank(value: Any) -> tuple[int, Any] | None:
    """Return what sorts values of any type, numbers before texts; None for no value."""
    if value is None or value == []:
        return None
    return (0, value) if isinstance(value, int | float) else (1, show_value(value))
