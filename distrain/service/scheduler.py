"""Decides what the queue of one machine starts and stops next: a pure function of jobs, devices and time.

GPUs and CPUs are scheduled apart, by the same rules:

1. Jobs wait in the order of `_place`. One is ready when the runs in its `after` have finished and its back-off is over.
2. Ready jobs start in that order while they fit. The first that does not fit is the head: it reserves its devices.
3. A job behind the head is backfilled if it can be stopped for the head, or if its limit ends before that could start.
4. For the head, running jobs are stopped: as few as suffice, or none where all of them would not suffice. They have a
   lower priority than the head, or were backfilled from behind it.
5. A job that was stopped for another is protected for `PROTECTED_S`: it is not stopped for a job again, and is not
   backfilled as one that can be stopped.
6. A job past its time limit is stopped.

A large job does not starve: a job backfilled in front of it ends before it could start, or is stopped for it and then
waits behind it.
"""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, get_args

from distrain.messages import joined
from distrain.runs.local_job import DeviceKind, counted_devices

PROTECTED_S = 300.0  # a job that was stopped for another is not stopped for a job again in this time
TIME_LIMIT = "time limit"  # why a job past its limit is stopped
_NEVER_FINISHES = {"failed": "has failed", "cancelled": "was cancelled", "missing": "does not exist"}  # state: as text


@dataclass(frozen=True, kw_only=True)
class Device:
    """A device of this machine: a GPU, a part of one (MIG), or a CPU that a job may use."""

    id: str  # "GPU-uuid", "MIG-uuid", "cpu-0"
    kind: DeviceKind
    is_free: bool  # no run has a lease on it, it is not drained, and no foreign process fills it
    is_usable: bool = True  # False: drained, filled by a foreign process or held by a run outside the queue


@dataclass(frozen=True, kw_only=True)
class Job:
    """A run that waits for its devices or runs on them, with all that the scheduler knows of its past."""

    name: str
    kind: DeviceKind
    devices: int  # how many it needs, more than 0
    priority: int = 0  # higher first
    submitted_at: float
    after: tuple[str, ...] = ()  # names of runs that must have finished before it starts
    is_preemptible: bool = True
    limit_s: float | None = None  # it is stopped after it has run this long in one stretch
    is_first: bool = False  # before others of its priority: it was preempted, or its process died
    preempted_at: float | None = None  # when it was last stopped for another job
    not_before: float = 0.0  # back-off after a death
    assigned: tuple[str, ...] = ()  # its devices while it runs; empty while it waits
    started_at: float | None = None  # of this stretch
    is_stopping: bool = False  # it has been requested to stop and is saving
    is_backfilled: bool = False  # its last start was before a job ahead of it; kept while it waits again


@dataclass(frozen=True)
class Start:
    """A job that starts now: its devices, and whether it starts before a job that is ahead of it."""

    devices: tuple[str, ...]
    is_backfilled: bool


@dataclass(frozen=True)
class Decision:
    """What to do now, and why the other waiting jobs wait; all by name of the job."""

    starts: Mapping[str, Start] = field(default_factory=dict)  # in the order in which to start
    stops: Mapping[str, str] = field(default_factory=dict)  # running jobs to stop, with "for JOB" or `TIME_LIMIT`
    waits: Mapping[str, str] = field(default_factory=dict)  # why each other waiting job waits
    impossible: Mapping[str, str] = field(default_factory=dict)  # why a waiting job can never start


def decide(
    jobs: Sequence[Job],
    devices: Sequence[Device],
    *,
    now: float,
    ended: Mapping[str, str],
    on_hold: str | None = None,
    max_devices: int | None = None,
) -> Decision:
    """Decide which jobs start on which devices, and which running jobs stop.

    `jobs` are all that wait or run, in any order, and `devices` all of this machine; a job gets the first free ones.
    `now` is in seconds on the clock of the jobs' times. `ended` has the state ("finished", "failed", "cancelled",
    "stopped") of each run that neither waits nor runs. `on_hold` says why nothing may start, such as a full disk; then
    nothing is stopped either. The queue uses at most `max_devices` of each kind at once.
    """
    queue = sorted(jobs, key=_place)
    pools = {kind: _pool(kind, queue, devices, max_devices=max_devices) for kind in get_args(DeviceKind)}
    states = {**ended, **{job.name: "running" if job.assigned else "queued" for job in queue}}
    waiting = [job for job in queue if not job.assigned]
    impossible = {job.name: why for job in waiting if (why := _why_never(job, pools[job.kind], states))}
    possible = [job for job in waiting if job.name not in impossible]
    unready = {job.name: why for job in possible if (why := _why_not_ready(job, states, now) or on_hold)}
    if on_hold:
        return Decision(waits=unready, impossible=impossible)
    ready = [job for job in possible if job.name not in unready]
    parts = [_schedule([job for job in ready if job.kind == kind], pool, now=now) for kind, pool in pools.items()]
    starts = {name: start for part in parts for name, start in part.starts.items()}
    return Decision(
        starts={job.name: starts[job.name] for job in ready if job.name in starts},
        stops={name: why for part in parts for name, why in part.stops.items()},
        waits=unready | {name: why for part in parts for name, why in part.waits.items()},
        impossible=impossible,
    )


def _place(job: Job) -> tuple[int, bool, float, str]:
    """Return the sort key of the queue: priority, then `is_first`, then time of submission, then name.

    A backfilled job that is interrupted keeps its place: it would otherwise be ahead of the job it was stopped for.
    """
    return -job.priority, not job.is_first or job.is_backfilled, job.submitted_at, job.name


class _Supply(NamedTuple):
    """How many devices are free, and how many more the queue may use: a job needs both."""

    free: int
    allowed: int

    @property
    def startable(self) -> int:
        return min(self)

    def plus(self, other: "_Supply") -> "_Supply":
        return _Supply(self.free + other.free, self.allowed + other.allowed)


@dataclass(frozen=True)
class _Pool:
    """The devices of one kind, and the jobs that run on them."""

    devices: tuple[Device, ...]
    running: tuple[Job, ...]  # in the order of the queue
    max_devices: int

    @property
    def usable(self) -> set[str]:
        return {device.id for device in self.devices if device.is_usable}

    @property
    def assigned(self) -> set[str]:
        return {device for job in self.running for device in job.assigned}

    @property
    def free(self) -> list[str]:
        taken = self.assigned
        return [device.id for device in self.devices if device.is_free and device.is_usable and device.id not in taken]

    @property
    def held(self) -> _Supply:
        """What runs that have ended are about to return: devices that are usable, not free, and of no running job."""
        return _Supply(len(self.usable.difference(self.free, self.assigned)), 0)

    @property
    def supply(self) -> _Supply:
        return _Supply(len(self.free), self.max_devices - sum(len(job.assigned) for job in self.running))

    def freed_by(self, *jobs: Job) -> _Supply:
        """Return what the end of running jobs adds to the supply: a drained or lost device does not become free."""
        assigned = [device for job in jobs for device in job.assigned]
        return _Supply(len(self.usable.intersection(assigned)), len(assigned))

    def started(self, job: Job, *, now: float) -> "_Pool":
        """Return the pool with a job on the first free devices, as the last of `running`."""
        job = replace(job, assigned=tuple(self.free[: job.devices]), started_at=now)
        return replace(self, running=(*self.running, job))


def _pool(kind: DeviceKind, queue: Sequence[Job], devices: Sequence[Device], *, max_devices: int | None) -> _Pool:
    return _Pool(
        tuple(device for device in devices if device.kind == kind),
        tuple(job for job in queue if job.kind == kind and job.assigned),
        sys.maxsize if max_devices is None else max_devices,
    )


def _why_never(job: Job, pool: _Pool, states: Mapping[str, str]) -> str | None:
    """Return why a waiting job can never start, or None."""
    if job.devices > len(pool.devices):
        return f"needs {counted_devices(job.devices, job.kind)}; this machine has {len(pool.devices) or 'none'}"
    if job.devices > pool.max_devices:
        return f"needs {counted_devices(job.devices, job.kind)}; this queue may use {pool.max_devices or 'none'}"
    for name in job.after:
        state = states.get(name, "missing")
        if state in _NEVER_FINISHES:
            return f"run {name} {_NEVER_FINISHES[state]}"
    return None


def _why_not_ready(job: Job, states: Mapping[str, str], now: float) -> str | None:
    """Return why a waiting job may not start yet whatever is free, or None."""
    unfinished = [name for name in job.after if states[name] != "finished"]
    if unfinished:
        named = [f"{name} (stopped)" if states[name] == "stopped" else name for name in unfinished]
        return f"waits for {'run' if len(named) == 1 else 'runs'} {joined(named, last='and')}"
    if job.not_before > now:
        return f"waits {math.ceil(job.not_before - now)} s after its process died"
    return None


def _schedule(ready: Sequence[Job], pool: _Pool, *, now: float) -> Decision:
    """Decide on the ready jobs of one kind, which are in the order of the queue."""
    starts: dict[str, Start] = {}
    stops = {job.name: TIME_LIMIT for job in pool.running if _is_ending(job, now) and not job.is_stopping}
    waits: dict[str, str] = {}
    head: _Head | None = None
    for job in ready:
        supply = pool.supply
        if head is None and job.devices > supply.startable:
            head = _reserve(job, pool, now=now)
            stops |= {victim.name: f"for {job.name}" for victim in head.victims}
            waits[job.name] = _shortage(job, supply, num_coming=head.coming.free)
        elif head is None or (job.devices <= head.spare(supply) and _may_be_backfilled(job, head, now)):
            pool = pool.started(job, now=now)
            starts[job.name] = Start(pool.running[-1].assigned, is_backfilled=head is not None)
        else:
            is_behind = job.devices <= supply.startable
            waits[job.name] = f"waits behind {head.job.name}" if is_behind else _shortage(job, supply)
    return Decision(starts, stops, waits)


@dataclass(frozen=True)
class _Head:
    """The first ready job that does not fit, and what it reserves."""

    job: Job
    victims: tuple[Job, ...]  # running jobs to stop for it
    coming: _Supply  # from the victims, the jobs that are already stopping, and runs that have just ended
    earliest_start: float

    def spare(self, supply: _Supply) -> int:
        """Return how many devices jobs behind the head may use of a supply.

        Where jobs that are stopping make the head fit, those are the devices that it does not need. Otherwise it cannot
        use the supply yet, and all may be used.
        """
        surplus = supply.plus(self.coming).startable - self.job.devices
        return supply.startable if surplus < 0 else min(supply.startable, surplus)


def _reserve(job: Job, pool: _Pool, *, now: float) -> _Head:
    """Make a job the head: find the jobs to stop for it, and how early it could start."""
    coming = pool.held.plus(pool.freed_by(*(other for other in pool.running if _is_ending(other, now))))
    victims = _fewest_victims(job, pool, pool.supply.plus(coming), now=now)
    coming = coming.plus(pool.freed_by(*victims))
    return _Head(job, victims, coming, _earliest_start(job, pool, now=now))


class _Victims(NamedTuple):
    """A set of running jobs that could be stopped; of two, the smaller one in the order of the fields is better."""

    num_jobs: int = 0
    priorities: tuple[int, ...] = ()  # the highest first
    ran_s: float = 0.0  # in this stretch, all together
    names: tuple[str, ...] = ()

    def plus(self, job: Job, *, now: float) -> "_Victims":
        ran_s = 0.0 if job.started_at is None else now - job.started_at
        priorities = (*self.priorities, job.priority)
        return _Victims(self.num_jobs + 1, priorities, self.ran_s + ran_s, (*self.names, job.name))


def _fewest_victims(head: Job, pool: _Pool, supply: _Supply, *, now: float) -> tuple[Job, ...]:
    """Return the running jobs to stop so that the head can start; none where it can without, or cannot even so.

    Of all sets that suffice it is the one with the fewest jobs; then with the lowest priorities, comparing the highest
    first; then with the fewest devices; then with the least time run. Dynamic programming: of all sets that lead to the
    same supply, only the best is extended.
    """
    best = {supply: _Victims()}
    exempt = {job.name for job in pool.running if _is_ending(job, now) or _is_protected(job, now)}
    candidates = [job for job in pool.running if _may_be_stopped_for(head, job) and job.name not in exempt]
    for job in candidates:  # their priorities descend
        for before, victims in list(best.items()):
            if before.startable < head.devices:  # a set that suffices needs no more jobs
                after, more = before.plus(pool.freed_by(job)), victims.plus(job, now=now)
                best[after] = min(best.get(after, more), more)
    sufficient = [(*v[:2], reached.free, *v[2:]) for reached, v in best.items() if reached.startable >= head.devices]
    names = min(sufficient)[-1] if sufficient else ()
    return tuple(job for job in candidates if job.name in names)


def _earliest_start(head: Job, pool: _Pool, *, now: float) -> float:
    """Return how early the head could start, infinity where it needs devices that are not usable.

    A job with a time limit counts as running until then. Any other may end now, and one to be stopped for the head too.
    """
    ends = [(now, pool.held)]
    for job in pool.running:
        is_until_limit = job.limit_s is not None and not job.is_stopping and not _may_be_stopped_for(head, job)
        ends.append((max(now, _limit_end(job, now)) if is_until_limit else now, pool.freed_by(job)))
    supply = pool.supply
    for end, freed in sorted(ends):
        supply = supply.plus(freed)
        if supply.startable >= head.devices:
            return end
    return math.inf


def _may_be_backfilled(job: Job, head: _Head, now: float) -> bool:
    """Whether a job does not delay the head: it can be stopped for it, or ends in time."""
    ends_in_time = job.limit_s is not None and now + job.limit_s <= head.earliest_start
    return ends_in_time or (job.is_preemptible and not _is_protected(job, now))


def _may_be_stopped_for(head: Job, job: Job) -> bool:
    """Whether a running job may be stopped for the head, outside its protection."""
    is_behind = job.priority < head.priority or (job.is_backfilled and _place(job) > _place(head))
    return job.is_preemptible and is_behind


def _is_protected(job: Job, now: float) -> bool:
    return job.preempted_at is not None and now - job.preempted_at < PROTECTED_S


def _is_ending(job: Job, now: float) -> bool:
    return job.is_stopping or _limit_end(job, now) <= now


def _limit_end(job: Job, now: float) -> float:
    """Return when the time limit of a running job ends, infinity without one."""
    return math.inf if job.limit_s is None else (now if job.started_at is None else job.started_at) + job.limit_s


def _shortage(job: Job, supply: _Supply, *, num_coming: int = 0) -> str:
    """Return what a job waits for as text."""
    is_allowed = supply.free <= supply.allowed
    there = f"{_are(supply.free)} free" if is_allowed else f"this queue may use {max(supply.allowed, 0) or 'no'} more"
    coming = f", {_are(num_coming)} being freed" if num_coming else ""
    return f"waits for {counted_devices(job.devices, job.kind)} ({there}{coming})"


def _are(number: int) -> str:
    return f"{number or 'none'} {'are' if number > 1 else 'is'}"
