"""Lists the evaluations, attempts, skipped batches and checkpoints of a run as tables of text."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distrain.config.metrics import format_value, is_number, title_of
from distrain.messages import byte_size, counted
from distrain.runs.attempts import ExplainedAttempt
from distrain.runs.facts import RunFacts
from distrain.runs.status import Status
from distrain.system.display import duration

_MAX_ROWS = 100  # of evaluations


@dataclass(frozen=True)
class Table:
    """Rows of texts below headings; `marked` is the number of the row that is the best one, -1 for none."""

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    marked: int = -1
    note: str = ""


def list_evaluations(records: Sequence[Mapping[str, Any]], status: Status) -> Table | None:
    """Return the evaluations in the metrics, the newest `_MAX_ROWS` and the best one; None where there are none."""
    found = [record for record in records if any(key.startswith("val/") for key in record)]
    if not found:
        return None
    keys = [key for key in found[-1] if key.startswith("val/") and is_number(key.removeprefix("val/"))]
    best = status.best["step"] if status.best is not None else None
    shown = [
        record for number, record in enumerate(found) if number >= len(found) - _MAX_ROWS or record["step"] == best
    ]
    marked = next((number for number, record in enumerate(shown) if record["step"] == best), -1)
    left_out = len(found) - len(shown)
    return Table(
        ["step", "epoch", *(title_of(key.removeprefix("val/")) for key in keys)],
        [[f"{record['step']:,}", _epoch(record), *(_value(key, record) for key in keys)] for record in shown],
        marked,
        f"{counted(left_out, 'earlier evaluation')} not in the table" if left_out else "",
    )


def list_attempts(attempts: Sequence[ExplainedAttempt]) -> Table | None:
    """Return the attempts of a run; None where there are none."""
    was_changed = any(each.changes for each in attempts)
    rows = [
        [
            f"{number}",
            each.state,
            f"{each.attempt.first_step:,} to {each.attempt.last_step:,}",
            f"{each.attempt.world_size:,}",
            each.attempt.host,
            _moment(each.attempt.started),
            "-" if each.seconds is None else duration(each.seconds),
            each.why,
            *([each.changes or "-"] if was_changed else []),
        ]
        for number, each in enumerate(attempts, start=1)
    ]
    headings = ["attempt", "state", "steps", "processes", "host", "started", "took", "how it ended"]
    headings += ["recipe from its first step on"] if was_changed else []
    return Table(headings, rows) if rows else None


def list_skipped(status: Status) -> Table | None:
    """Return the batches that a run has skipped; None where there are none."""
    rows = [
        [
            f"{batch.step:,}",
            batch.cause,
            ", ".join(map(str, batch.samples)) or "-",
            ", ".join(map(str, batch.bad_samples)) or "-",
        ]
        for batch in status.skipped_batches
    ]
    headings = ["step", "not finite", "samples that may be the cause", "samples known to be the cause"]
    return Table(headings, rows) if rows else None


def list_checkpoints(facts: RunFacts) -> Table | None:
    """Return the checkpoints that were kept, with the best one marked; None where there are none."""
    brief = facts.overview.brief
    best = None if brief.best is None else int(brief.best["step"])
    rows = [
        [
            entry.path.name,
            byte_size(entry.num_bytes),
            _moment(entry.written),
            "-" if entry.evaluation is None else format_value(brief.best_by, entry.evaluation),
        ]
        for entry in facts.kept
    ]
    marked = next((number for number, entry in enumerate(facts.kept) if entry.step == best), -1)
    return Table(["checkpoint", "size", "written", title_of(brief.best_by)], rows, marked) if rows else None


def _epoch(record: Mapping[str, Any]) -> str:
    return f"{record['epoch']:.6g}" if isinstance(record.get("epoch"), int | float) else "-"


def _value(key: str, record: Mapping[str, Any]) -> str:
    return format_value(key.removeprefix("val/"), record)


def _moment(seconds: float) -> str:
    return time.strftime("%F %T", time.localtime(seconds)) if math.isfinite(seconds) else "-"
