"""Remembers what was read of runs that have ended, in the user's cache folder, so that long lists appear at once.

The index is never the truth: an entry counts only while inode, size and times of the files that it was read from are
the same. Runs that may be alive, and files that have just changed, are always read. An index that is missing, damaged
or cannot be written only costs time. Each user has their own, because others could write to a shared one.
"""

import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeAlias

import xxhash

from distrain.runs.directory import RunDirectory
from distrain.runs.labels import Labels
from distrain.runs.recipe_values import Sections
from distrain.runs.status import Job, State, Status
from distrain.system.caches import cache_folder
from distrain.system.files import write_atomically

MIN_RUNS = 100  # fewer are read as fast
_FORMAT = 2
_ENDED: tuple[State, ...] = ("stopped", "preempted", "cancelled", "failed", "finished")  # no process changes such a run
_SETTLED_S = 2.0  # two changes of a file may have the same time: the clocks of some file systems tick in seconds
_NO_LABELS = Labels()

# The files that a run has besides its recipe, and a hash of inodes, sizes and times of them, the folder and the recipe.
Stamp: TypeAlias = list[str | int]

_DAMAGED = (LookupError, TypeError, ValueError, AttributeError)


class Brief(NamedTuple):
    """The fields of a run's status that every list shows."""

    state: State
    step: int
    total_steps: int
    best_by: str
    last: Mapping[str, float] | None
    best: Mapping[str, float] | None
    train_seconds: float
    own_metrics: Mapping[str, bool | None]

    @classmethod
    def of(cls, status: Status) -> Self:
        """Return these fields of a status."""
        return cls._make(getattr(status, name) for name in cls._fields)


class RunFiles(NamedTuple):
    """What a list shows of a run, as read from its files; where they cannot be read, `fault` says why."""

    brief: Brief
    sections: Sections
    labels: Labels
    job: Job | None = None
    is_best_kept: bool = False  # whether there is a checkpoint of the best evaluation
    fault: str | None = None


class RunIndex:
    """What is known of the runs directly below a folder; `save` writes it where it has changed."""

    def __init__(self, root: Path) -> None:
        digest = xxhash.xxh3_64_hexdigest(os.fsencode(root.resolve()))
        self._path = cache_folder() / "distrain" / f"runs-{digest}.json"
        self._sections: list[tuple[str, Mapping[str, Any]]] = []  # those of all recipes, each once
        self._old: dict[str, Any] = {}  # entries by the name of the run
        self._valid: dict[str, Any] = {}
        self._new: dict[str, tuple[Stamp, RunFiles]] = {}
        with suppress(OSError, *_DAMAGED):
            checksum, _, text = self._path.read_bytes().partition(b"\n")
            if checksum.decode() == xxhash.xxh3_128_hexdigest(text):
                found = json.loads(text)
                if found["format"] == _FORMAT:
                    self._sections, self._old = found["sections"], found["runs"]

    def find(self, run: RunDirectory, started: float) -> RunFiles | None:
        """Return what is known of a run, if no file has changed since; `started` is the time of its recipe."""
        name = run.path.name
        with suppress(OSError, *_DAMAGED):
            stamp, brief, sections, labels, job_id, is_best_kept = entry = self._old[name]
            if _is_current(run, started, stamp):
                known = RunFiles(
                    Brief(*brief),
                    dict([self._sections[number] for number in sections]),
                    Labels.model_validate(labels) if labels else _NO_LABELS,
                    None if job_id is None else Job(id=job_id),
                    is_best_kept,
                )
                self._valid[name] = entry
                return known
        return None

    def stamp(self, name: str) -> Stamp:
        """Return the stamp of a run that `find` has found."""
        stamp: Stamp = self._old[name][0]
        return stamp

    def add(self, run: RunDirectory, stamp: Stamp | None, read: RunFiles) -> None:
        """Remember what was read of a run after its stamp was taken, if the run has ended."""
        if stamp is not None and _has_ended(read):
            self._new[run.path.name] = stamp, read

    def save(self) -> None:
        """Write the index for the next list, if it has changed."""
        if not self._new and len(self._valid) == len(self._old):
            return
        numbers: dict[int, int | None] = {}  # by the identity of a section; None for one that JSON cannot hold
        sections: list[tuple[str, Mapping[str, Any]]] = []

        def number(name: str, section: Mapping[str, Any]) -> int | None:
            if id(section) not in numbers:
                numbers[id(section)] = len(sections) if _is_json(section) else None
                if numbers[id(section)] is not None:
                    sections.append((name, section))
            return numbers[id(section)]

        runs = {}
        for name, entry in self._valid.items():
            runs[name] = [*entry[:2], [number(*self._sections[old]) for old in entry[2]], *entry[3:]]
        for name, (stamp, read) in self._new.items():
            ids = [number(*section) for section in read.sections.items()]
            if None not in ids:
                labels = read.labels.model_dump(exclude_defaults=True)
                job_id = None if read.job is None else read.job.id
                runs[name] = [stamp, read.brief, ids, labels, job_id, read.is_best_kept]
        with suppress(OSError):  # a full disk, a home that cannot be written
            text = json.dumps({"format": _FORMAT, "sections": sections, "runs": runs}, separators=(",", ":"))
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # others may not read these recipes
            write_atomically(self._path, f"{xxhash.xxh3_128_hexdigest(text.encode())}\n{text}")


class RunMemory:
    """What is known of the runs in a folder, for a process that lists them again and again: as `RunIndex`, in memory.

    The index is read and written once.
    """

    def __init__(self, root: Path) -> None:
        self._index: RunIndex | None = RunIndex(root)
        self._known: dict[str, tuple[Stamp, RunFiles]] = {}

    def find(self, run: RunDirectory, started: float) -> RunFiles | None:
        """Return what is known of a run, if no file has changed since; `started` is the time of its recipe."""
        name = run.path.name
        if name in self._known:
            stamp, files = self._known[name]
            with suppress(OSError):
                if _is_current(run, started, stamp):
                    return files
            del self._known[name]
        elif self._index is not None and (found := self._index.find(run, started)) is not None:
            self._known[name] = self._index.stamp(name), found
            return found
        return None

    def add(self, run: RunDirectory, stamp: Stamp | None, read: RunFiles) -> None:
        """Remember what was read of a run after its stamp was taken, if the run has ended."""
        if self._index is not None:
            self._index.add(run, stamp, read)
        if stamp is not None and _has_ended(read):
            self._known[run.path.name] = stamp, read

    def save(self) -> None:
        """Write the index, after the first list."""
        if self._index is not None:
            self._index.save()
            self._index = None


def take_stamp(run: RunDirectory, started: float) -> Stamp | None:
    """Return what changes with any file from which a list is read, and when one is created or deleted.

    `started` is the time of the recipe (`find_start_times`). None where the files cannot be seen, or one has changed so
    lately that another change may have the same time.
    """
    files = (run.status, run.labels, run.job, run.checkpoints)
    with suppress(OSError):
        stamp, newest_ns = _stamp(run, started, " ".join(path.name for path in files if path.exists()))
        return stamp if time.time() - max(newest_ns * 1e-9, started) >= _SETTLED_S else None
    return None


def _is_current(run: RunDirectory, started: float, stamp: Stamp) -> bool:
    """Whether no file of a run has changed since its stamp was taken; raises `OSError` where one is missing."""
    return _stamp(run, started, str(stamp[0]))[0] == stamp


def _has_ended(read: RunFiles) -> bool:
    return read.fault is None and read.brief.state in _ENDED


def _stamp(run: RunDirectory, started: float, names: str) -> tuple[Stamp, int]:
    """Return the stamp from these files, and the time of the newest; raises `OSError` where one is missing."""
    folder = os.fspath(run.path)
    found = [os.stat(f"{folder}/{name}") for name in ("", *names.split())]  # noqa: PTH116 - three times as fast
    numbers = [(each.st_ino, each.st_size, each.st_mtime_ns, each.st_ctime_ns) for each in found]
    return [names, hash((started, *numbers))], max([each[3] for each in numbers])


def _is_json(section: Mapping[str, Any]) -> bool:
    """Whether JSON gives the values back: it has no dates, for example."""
    try:
        return bool(json.loads(json.dumps(section)) == section)
    except (TypeError, ValueError):
        return False
