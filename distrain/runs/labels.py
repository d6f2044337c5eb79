"""Stores what the user writes on a run, its tags and a note, and moves runs to the trash."""

import json
import re
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel

from distrain.errors import RunError
from distrain.runs import slurm
from distrain.runs.directory import RunDirectory
from distrain.runs.liveness import is_alive, is_queued
from distrain.system.files import read_whole, to_json, write_atomically
from distrain.system.filesystem import check_writable

TRASH = ".trash"  # beside the runs that are in it
_TAG = re.compile(r"[\w.+-]{1,64}")


class Labels(BaseModel):
    """The user's own words on a run: `labels.json`."""

    tags: list[str] = []  # in the order in which they were added
    note: str = ""


def read_labels(run: RunDirectory) -> Labels:
    """Return the labels of a run, empty where it has none; raises `RunError` for a damaged file."""
    return read_whole(run.labels, lambda text: Labels.model_validate(json.loads(text))) or Labels()


def write_labels(run: RunDirectory, labels: Labels) -> None:
    """Replace the labels of a run; raises a `UserError` where this user may not write to it."""
    run.check_writable(otherwise="only its owner can label it")
    write_atomically(run.labels, to_json(labels))


def check_tags(tags: Sequence[str]) -> None:
    """Raise `RunError` for a tag that is not a word of at most 64 letters, digits, dots, plus and minus signs."""
    if bad := [tag for tag in tags if not _TAG.fullmatch(tag)]:
        raise RunError(f"{bad[0]!r} is not a tag: use up to 64 letters, digits, '.', '+', '-' and '_'")


def check_removable(run: RunDirectory) -> None:
    """Raise a `UserError` where a run is training, is being launched, waits in a queue, or is another user's."""
    if is_alive(run):
        raise RunError(f"run {run.path.name} is running; `distrain stop {run.path} --wait` ends it first")
    if is_queued(run):
        raise RunError(f"run {run.path.name} is in the queue; `distrain cancel {run.path}` takes it out")
    job = run.read_job()
    if job is not None and (info := slurm.read_jobs([job.id]).get(job.id)) and not info.is_over:
        raise RunError(f"run {run.path.name} is in SLURM's queue as job {job.id}; `distrain stop {run.path}` ends it")
    run.check_writable(otherwise="only its owner can remove it")
    check_writable(run.path.absolute().parent, otherwise="only the owner of the folder can remove it")


def remove_run(run: RunDirectory, *, purge: bool) -> Path | None:
    """Move a run to the trash beside it, or delete it for good with `purge`; returns its place in the trash.

    Raises a `UserError` where `check_removable` does.
    """
    check_removable(run)
    path = run.path.resolve()
    with run.hold_launcher_lock():  # no start comes between
        if purge:
            shutil.rmtree(path)
            return None
        trash = path.parent / TRASH
        trash.mkdir(exist_ok=True)
        target = trash / path.name
        if target.exists():
            target = trash / f"{path.name}-{time.time_ns()}"
        path.rename(target)
    return target


def describe_labels(labels: Labels) -> list[tuple[str, str]]:
    """Return the labels that are set as titles and texts."""
    tags = [("tags", ", ".join(labels.tags))] if labels.tags else []
    return tags + ([("note", labels.note)] if labels.note else [])
