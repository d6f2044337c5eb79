"""Reads the jobs of a queue off the run directories, as the scheduler needs them."""

import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distrain.errors import RunError
from distrain.launchers.preflight import MIN_DISK_BYTES
from distrain.messages import byte_size
from distrain.runs.directory import RunDirectory
from distrain.runs.liveness import WAITING
from distrain.runs.local_job import LocalJob
from distrain.runs.status import Status
from distrain.runs.stop_file import read_stop_reason
from distrain.service import scheduler
from distrain.service.devices import DeviceState, list_devices, slot_names
from distrain.service.queue import bell, find_owner_fault
from distrain.system.filesystem import explain
from distrain.system.leases import user_name

_SHOWN = {"kind", "devices", "priority", "submitted_at", "after", "time_limit_s", "preemptions", "deaths", "assigned"}
_OVER = {"finished", "failed", "stopped", "cancelled"}


@dataclass(frozen=True)
class Entry:
    """A job of the queue as its files show it now."""

    run: RunDirectory
    job: LocalJob
    status: Status
    is_held: bool  # a process launches or trains it

    @property
    def name(self) -> str:
        """The name by which other jobs wait for it."""
        return self.run.path.name

    @property
    def is_waiting(self) -> bool:
        """Whether it is in the queue and nothing has started it."""
        return not self.is_held and self.status.state in WAITING

    @property
    def needs_settling(self) -> bool:
        """Whether its process has ended, and its files do not say yet what follows."""
        return not self.is_held and self.status.state != "queued"

    @property
    def is_over(self) -> bool:
        """Whether it has left the queue."""
        was_preempted = self.status.state == "stopped" and read_stop_reason(self.run) == "preempted"
        return not self.is_held and self.status.state in _OVER and not was_preempted


class JobTable:
    """The jobs of the runs in a folder; those that are over are read again only after a change in the folder."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._seen: int | None = None
        self._open: list[RunDirectory] = []
        self.faults: dict[Path, str] = {}  # why the files of a job could not be read
        self._over: dict[Path, tuple[int, int]] = {}  # the times of the files of a job that is over

    def read(self) -> list[Entry]:
        """Return the jobs that wait, run, or have just died, in no order."""
        if (seen := bell(self._root)) != self._seen:
            self._seen = seen
            self._open = [run for run in self._find() if self._times(run) != self._over.get(run.path)]
        self.faults = {}
        entries: list[Entry] = []
        for run in self._open:
            try:
                entries += [entry for entry in [read_entry(run)] if entry is not None]
            except RunError as error:
                self.faults[run.path] = str(error)
            except OSError as error:
                self.faults[run.path] = explain(error) or str(error)
        for entry in entries:
            if entry.is_over:
                self._over[entry.run.path] = self._times(entry.run)
        self._open = [entry.run for entry in entries if not entry.is_over] + list(map(RunDirectory, self.faults))
        return [entry for entry in entries if not entry.is_over]

    def _find(self) -> Iterable[RunDirectory]:
        runs = [RunDirectory(path) for path in self._root.iterdir()] if self._root.is_dir() else []
        return [run for run in runs if os.path.lexists(run.job)]

    def _times(self, run: RunDirectory) -> tuple[int, int]:
        with suppress(OSError):
            return run.job.stat().st_mtime_ns, run.status.stat().st_mtime_ns
        return 0, 0


def read_entry(run: RunDirectory) -> Entry | None:
    """Read a job of the queue; None where a run has none. Raises where its files cannot be read."""
    job = run.read_local_job()
    if job is None:
        return None
    is_held = run.is_held  # before the status, which a launcher writes before it releases its lock
    return Entry(run, job, run.read_status(), is_held)


def read_ended(entries: list[Entry]) -> dict[str, str]:
    """Return the state of the runs that jobs wait for and that are not in the queue."""
    names = {name: entry.run.path.parent for entry in entries for name in entry.job.after}
    found: dict[str, str] = {}
    for name, root in names.items():
        run = RunDirectory(root / name)
        if name not in {entry.name for entry in entries} and run.exists:
            with suppress(RunError, OSError):
                found[name] = run.read_status().state
    return found


def as_job(entry: Entry, *, slots: int, is_starting: bool, own: Iterable[DeviceState]) -> scheduler.Job:
    """Return the job as the scheduler sees it; more CPU processes than slots share all of them.

    `is_starting` where its launcher has been started and has not locked the run yet. `own` are the devices that its
    launcher has leased.
    """
    job, is_running = entry.job, entry.is_held or is_starting
    leased = tuple(device.id for device in own)
    return scheduler.Job(
        name=entry.name,
        kind=job.kind,
        devices=min(job.devices, slots) if job.kind == "cpu" else job.devices,
        priority=job.priority,
        submitted_at=job.queued_at,
        after=tuple(job.after),
        is_preemptible=job.requeue,
        limit_s=job.time_limit_s,
        is_first=job.is_first,
        preempted_at=job.preempted_at,
        not_before=job.not_before,
        assigned=(leased or tuple(job.assigned)) if is_running else (),
        started_at=job.started_at,
        is_stopping=is_running and bool(job.stop_reason or entry.run.stop.exists()),
        is_backfilled=job.is_backfilled,
    )


def decide(
    entries: list[Entry],
    *,
    slots: int,
    starting: Iterable[Path],
    now: float,
    root: Path,
    max_devices: int | None = None,
) -> scheduler.Decision:
    """Ask the scheduler what to do now; `starting` are the runs whose launchers have just been started."""
    states = list_devices(slots=slots) if any(entry.job.kind == "gpu" for entry in entries) else _cpus(slots)
    holders = {str(entry.run.path.resolve()): entry.name for entry in entries}
    leased: dict[str, list[DeviceState]] = {}
    for state in states:
        if state.holder is not None and (name := holders.get(state.holder.run)) is not None:
            leased.setdefault(name, []).append(state)
    jobs = [
        as_job(entry, slots=slots, is_starting=entry.run.path in starting, own=leased.get(entry.name, ()))
        for entry in entries
    ]
    taken = {device for job in jobs for device in job.assigned}
    devices = [
        scheduler.Device(
            id=state.id,
            kind=state.kind,
            is_free=state.is_free and state.id not in taken,
            is_usable=not state.is_out and (state.holder is None or state.id in taken),
        )
        for state in states
    ]
    return scheduler.decide(
        jobs, devices, now=now, ended=read_ended(entries), on_hold=find_disk_fault(root), max_devices=max_devices
    )


def read_queue(root: Path, *, now: float, table: JobTable | None = None) -> list[dict[str, Any]]:
    """Return the jobs of a queue in the order in which they are served, those that run first, as JSON objects.

    With a `table` that is kept between two calls, jobs that are over are not read again. Raises `RunError` where `root`
    is a file.
    """
    if root.exists() and not root.is_dir():
        raise RunError(f"{root} is not a folder; name the folder of the runs with --root")
    table = table or JobTable(root)
    entries = table.read()
    slots = max([len(slot_names()), *(_number(name) + 1 for entry in entries for name in entry.job.assigned)])
    owned = [entry for entry in entries if find_owner_fault(entry.run) is None]
    decision = decide(owned, slots=slots, starting=(), now=now, root=root) if owned else scheduler.Decision()
    never = {name: f"never starts: {why}; `distrain cancel` takes it out" for name, why in decision.impossible.items()}
    whys = {**decision.waits, **never, **dict.fromkeys(decision.starts, "next")}
    entries.sort(key=lambda one: (not one.is_held, -one.job.priority, not one.job.is_first, one.job.queued_at))
    rows = [_row(entry, find_owner_fault(entry.run) or whys.get(entry.name, "")) for entry in entries]
    return rows + [
        {"run": path.name, "path": str(path), "state": "unreadable", "priority": 0, "why": fault}
        for path, fault in table.faults.items()
    ]


def _row(entry: Entry, why: str) -> dict[str, Any]:
    """Return a job as a JSON object; `why` says what it waits for."""
    state = "starting" if entry.is_held and entry.status.state == "queued" else entry.status.state
    if entry.is_held:
        why = f"stops {entry.job.stop_reason}" if entry.job.stop_reason else ""
    return {
        "run": entry.name,
        "path": str(entry.run.path),
        "state": state if entry.is_held or entry.is_waiting else "died",
        "step": entry.status.step,
        "total_steps": entry.status.total_steps,
        **entry.job.model_dump(include=_SHOWN),
        "submitted_by": user_name(entry.run.job.stat().st_uid),
        "why": why,
    }


def _number(slot: str) -> int:
    """Return the number of a CPU slot; -1 for a GPU."""
    return int(slot.removeprefix("cpu-")) if slot.startswith("cpu-") else -1


def find_disk_fault(root: Path) -> str | None:
    """Return why no run should start: its disk is nearly full."""
    free = shutil.disk_usage(root).free
    if free >= MIN_DISK_BYTES:
        return None
    return f"the disk has only {byte_size(free)} free"


def _cpus(slots: int) -> list[DeviceState]:
    return list_devices("cpu", slots=slots)
