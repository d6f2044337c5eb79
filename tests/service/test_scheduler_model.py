"""Random queues on random machines, simulated to their end: every decision is checked against the rules by brute force.

The simulated machine has what happens to a real one: jobs die and are queued again, stops take their time, devices
become unusable and return, freed devices are leased a little longer, and the scheduler is killed while it carries out a
decision. All state is in jobs and devices.
"""

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, combinations
from typing import get_args

import pytest

from distrain.runs.local_job import DeviceKind
from distrain.service.scheduler import PROTECTED_S, TIME_LIMIT, Decision, Device, Job, decide

TICK_S = 10.0
LONGEST_WORK_S = 600.0
LONGEST_STOP_S = 60.0
LONGEST_LIMIT_S = 900.0


@dataclass
class Machine:
    """A machine whose jobs need a time of work and whose devices come and go, until `calm_at`."""

    rng: random.Random
    devices: dict[str, DeviceKind]
    max_devices: int | None
    calm_at: float  # from then on nothing dies, fails or becomes unusable
    now: float = 0.0
    jobs: dict[str, Job] = field(default_factory=dict)
    work_s: dict[str, float] = field(default_factory=dict)  # what is left
    stops_at: dict[str, float] = field(default_factory=dict)
    ended: dict[str, str] = field(default_factory=dict)
    unusable_until: dict[str, float] = field(default_factory=dict)
    leased_until: dict[str, float] = field(default_factory=dict)
    first_starts: dict[str, float] = field(default_factory=dict)

    def submit(self, job: Job, *, work_s: float) -> None:
        self.jobs[job.name], self.work_s[job.name] = job, work_s

    def listed(self) -> list[Device]:
        leased = {device for job in self.jobs.values() for device in job.assigned}
        leased |= {device for device, until in self.leased_until.items() if until > self.now}
        unusable = {device for device, until in self.unusable_until.items() if until > self.now}
        return [
            Device(id=name, kind=kind, is_free=name not in leased | unusable, is_usable=name not in unusable)
            for name, kind in self.devices.items()
        ]

    def tick(self) -> None:
        """Let the time of a tick pass, then decide, check the decision and carry it out."""
        self.now += TICK_S
        self._disturb()
        for job in list(self.jobs.values()):
            if job.assigned:
                self._run(job)
        jobs, devices = self.rng.sample(list(self.jobs.values()), len(self.jobs)), self.listed()
        decision = decide(jobs, devices, now=self.now, ended=self.ended, max_devices=self.max_devices)
        check(decision, jobs, devices, self)
        self._apply(decision)

    def _disturb(self) -> None:
        for device in self.devices:
            if self.now < self.calm_at and self.rng.random() < 0.01:
                self.unusable_until[device] = self.now + self.rng.uniform(0, 500)

    def _run(self, job: Job) -> None:
        self.work_s[job.name] -= TICK_S
        is_calm = self.now >= self.calm_at
        if self.work_s[job.name] <= 0:
            self._release(job)
            del self.jobs[job.name]
            self.ended[job.name] = "failed" if self.rng.random() < 0.05 and not is_calm else "finished"
        elif job.is_stopping and self.now >= self.stops_at[job.name]:
            was_preempted = job.preempted_at is not None and job.preempted_at >= (job.started_at or 0.0)
            self._queue_again(job, is_first=was_preempted)
        elif not is_calm and self.rng.random() < 0.01:
            self._queue_again(job, is_first=True, not_before=self.now + 30)

    def _queue_again(self, job: Job, *, is_first: bool, not_before: float = 0.0) -> None:
        self._release(job)
        waiting = replace(job, assigned=(), started_at=None, is_stopping=False)
        self.jobs[job.name] = replace(waiting, is_first=is_first, not_before=not_before)

    def _release(self, job: Job) -> None:
        for device in job.assigned:
            self.leased_until[device] = self.now + self.rng.choice([0.0, 0.0, TICK_S])

    def _apply(self, decision: Decision) -> None:
        """Carry out a decision, or only its beginning: the scheduler may be killed at any time."""
        is_killed = self.rng.random() < 0.05
        for name, why in decision.stops.items():
            if not (is_killed and self.rng.random() < 0.5):
                job = replace(self.jobs[name], is_stopping=True)
                self.jobs[name] = job if why == TIME_LIMIT else replace(job, preempted_at=self.now)
                self.stops_at[name] = self.now + self.rng.uniform(0, LONGEST_STOP_S)
        for name, start in decision.starts.items():
            if is_killed and self.rng.random() < 0.5:
                return
            self.jobs[name] = replace(
                self.jobs[name],
                assigned=start.devices,
                started_at=self.now,
                is_first=False,
                is_backfilled=start.is_backfilled,
            )
            self.first_starts.setdefault(name, self.now)


# What holds for each decision. All of it is written from the rules, with loops over everything where the scheduler is
# clever.


def check(decision: Decision, jobs: Sequence[Job], devices: Sequence[Device], machine: Machine) -> None:
    now, by_name = machine.now, {job.name: job for job in jobs}
    answered = [*decision.starts, *decision.waits, *decision.impossible]
    assert sorted(answered) == sorted(job.name for job in jobs if not job.assigned), "each waiting job has one answer"
    used = [device for start in decision.starts.values() for device in start.devices]
    assert len(used) == len(set(used)), "no device has two jobs"
    for name, start in decision.starts.items():
        job = by_name[name]
        assert all(machine.ended.get(run) == "finished" for run in job.after)
        assert job.not_before <= now
        assert len(start.devices) == job.devices
        assert {(device.kind, device.is_free) for device in devices if device.id in start.devices} == {(job.kind, True)}
    for name, why in decision.stops.items():
        assert by_name[name].assigned
        assert not by_name[name].is_stopping
        assert why == TIME_LIMIT or not is_protected(by_name[name], now)
    for kind in get_args(DeviceKind):
        of_kind = [device for device in devices if device.kind == kind]
        check_kind(decision, [job for job in jobs if job.kind == kind], of_kind, machine)


def check_kind(decision: Decision, jobs: Sequence[Job], devices: Sequence[Device], machine: Machine) -> None:
    now = machine.now
    ending = {job.name for job in jobs if job.assigned and (job.is_stopping or until_limit(job, now) <= now)}
    assert {job.name for job in jobs if decision.stops.get(job.name) == TIME_LIMIT} == {
        job.name for job in jobs if job.name in ending and not job.is_stopping
    }
    ready = [job for job in sorted(jobs, key=place) if is_ready(job, devices, machine)]
    kept = [job for job in ready if job.name not in decision.starts]
    victims = {job.name for job in jobs if decision.stops.get(job.name, TIME_LIMIT) != TIME_LIMIT}
    if not kept:
        assert not any(decision.starts[job.name].is_backfilled for job in ready)
        assert not victims
        return
    head, index = kept[0], ready.index(kept[0])
    in_order, behind = ready[:index], ready[index + 1 :]
    assert not any(decision.starts[job.name].is_backfilled for job in in_order), (
        "nothing ahead of the head is behind it"
    )
    assert all(decision.starts[job.name].is_backfilled for job in behind if job.name in decision.starts)
    # From here on the jobs that start in order run, and what has ended has returned its devices.
    running = [job for job in jobs if job.assigned]
    running += [replace(job, assigned=decision.starts[job.name].devices, started_at=now) for job in in_order]
    spare = startable(running, devices, machine, gone=set())
    assert head.devices > spare, "the head does not fit"
    taken = {device for job in running for device in job.assigned}
    devices = [replace(device, is_free=device.id not in taken) for device in devices]
    candidates = [job for job in running if is_victim(job, head, now) and job.name not in ending]
    assert cost(victims, candidates, devices, now) == min(
        (
            cost(names, candidates, devices, now)
            for names in subsets([job.name for job in candidates])
            if startable(running, devices, machine, gone=ending | names) >= head.devices
        ),
        default=cost(set(), [], devices, now),
    )
    surplus = startable(running, devices, machine, gone=ending | victims) - head.devices
    spare = min(spare, surplus) if surplus >= 0 else spare
    start_s = earliest_start(head, running, devices, machine, ending)
    for job in behind:
        is_harmless = (job.is_preemptible and not is_protected(job, now)) or (
            job.limit_s is not None and now + job.limit_s <= start_s
        )
        assert (job.name in decision.starts) == (is_harmless and job.devices <= spare)
        spare -= job.devices if job.name in decision.starts else 0


def place(job: Job) -> tuple[int, int, float, str]:
    return -job.priority, 0 if job.is_first and not job.is_backfilled else 1, job.submitted_at, job.name


def is_ready(job: Job, devices: Sequence[Device], machine: Machine) -> bool:
    most = len(devices) if machine.max_devices is None else min(machine.max_devices, len(devices))
    is_after = all(machine.ended.get(run) == "finished" for run in job.after)
    return not job.assigned and is_after and job.not_before <= machine.now and job.devices <= most


def is_protected(job: Job, now: float) -> bool:
    return job.preempted_at is not None and now < job.preempted_at + PROTECTED_S


def is_below(job: Job, head: Job) -> bool:
    was_behind = job.is_backfilled and job.priority <= head.priority and place(head) < place(job)
    return job.is_preemptible and (job.priority < head.priority or was_behind)


def is_victim(job: Job, head: Job, now: float) -> bool:
    return is_below(job, head) and not is_protected(job, now)


def until_limit(job: Job, now: float) -> float:
    assert job.started_at is not None
    return math.inf if job.limit_s is None else job.started_at + job.limit_s


def startable(running: Sequence[Job], devices: Sequence[Device], machine: Machine, *, gone: set[str]) -> int:
    """How many devices a job could start on if some of the running jobs were gone."""
    stay = [device for job in running if job.name not in gone for device in job.assigned]
    freed = {device for job in running if job.name in gone for device in job.assigned}
    free = [d.id for d in devices if d.is_usable and (d.is_free or d.id in freed) and d.id not in stay]
    return len(free) if machine.max_devices is None else min(len(free), machine.max_devices - len(stay))


def cost(
    names: set[str], candidates: Sequence[Job], devices: Sequence[Device], now: float
) -> tuple[int, list[int], int, float]:
    chosen = [job for job in candidates if job.name in names]
    assert len(chosen) == len(names), "only what may be stopped is stopped"
    freed = sum(device.is_usable for device in devices for job in chosen if device.id in job.assigned)
    ran_s = sum(now - (job.started_at or 0.0) for job in chosen)
    return len(chosen), sorted((job.priority for job in chosen), reverse=True), freed, ran_s


def subsets(names: Sequence[str]) -> Iterator[set[str]]:
    assert len(names) <= 10
    return map(set, chain.from_iterable(combinations(names, size) for size in range(len(names) + 1)))


def earliest_start(
    head: Job, running: Sequence[Job], devices: Sequence[Device], machine: Machine, ending: set[str]
) -> float:
    """The first time at which the head fits, if all that may end by then has."""
    ends = {
        job.name: machine.now
        if job.name in ending or is_below(job, head) or job.limit_s is None
        else until_limit(job, machine.now)
        for job in running
    }
    for time in sorted({machine.now, *ends.values()}):
        gone = {name for name, end in ends.items() if end <= time}
        if startable(running, devices, machine, gone=gone) >= head.devices:
            return time
    return math.inf


# Random queues


def random_machine(rng: random.Random, *, calm_at: float) -> Machine:
    devices: dict[str, DeviceKind] = {f"g{i}": "gpu" for i in range(rng.randint(1, 6))}
    devices |= {f"cpu-{i}": "cpu" for i in range(rng.randint(0, 3))}
    return Machine(rng, devices, rng.choice([None, None, 2, 4]), calm_at)


def random_job(rng: random.Random, name: str, *, now: float, earlier: Sequence[str]) -> Job:
    return Job(
        name=name,
        kind=rng.choice(["gpu", "gpu", "cpu"]),
        devices=rng.choice([1, 1, 1, 2, 2, 3, 4, 6]),
        priority=rng.choice([0, 0, 0, 1, 2]),
        submitted_at=now,
        after=tuple(rng.sample(earlier, 1)) if earlier and rng.random() < 0.2 else (),
        is_preemptible=rng.random() < 0.7,
        limit_s=rng.choice([None, None, 100.0, 300.0, LONGEST_LIMIT_S]),
    )


def can_finish(job: Job, machine: Machine) -> bool:
    most = sum(kind == job.kind for kind in machine.devices.values())
    has_devices = job.devices <= min(most, machine.max_devices or most)
    return has_devices and not any(machine.ended.get(name) == "failed" for name in job.after)


def run_random_queue(seed: int) -> None:
    """Submit jobs for an hour; later all have finished but those that cannot, or wait for one that cannot."""
    rng = random.Random(seed)
    machine = random_machine(rng, calm_at=5000.0)
    names: list[str] = []
    while machine.now < 100_000.0:
        if machine.now < 3600.0 and rng.random() < 0.12:
            names.append(f"job{len(names)}")
            job = random_job(rng, names[-1], now=machine.now, earlier=names[:-1])
            machine.submit(job, work_s=rng.uniform(0, LONGEST_WORK_S))
        machine.tick()
        if machine.now > 3600.0 and not any(
            can_finish(job, machine) and not any(run in machine.jobs for run in job.after)
            for job in machine.jobs.values()
        ):
            return
    pytest.fail(f"seed {seed}: {list(machine.jobs)} have not finished")


@pytest.mark.parametrize("seed", range(30))
def test_random_queue_keeps_all_rules_and_finishes(seed: int) -> None:
    run_random_queue(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1000, 2000, 20))
def test_many_random_queues_keep_all_rules_and_finish(seed: int) -> None:
    for each in range(seed, seed + 20):
        run_random_queue(each)


def run_stream(seed: int) -> None:
    """Fill a machine, submit a job that needs all of it, and then small jobs of its priority without end.

    The large job starts when the jobs ahead of it have ended (a job that was backfilled may run as long as one of their
    limits), the others have saved, and leases have been returned.
    """
    rng = random.Random(seed)
    num_devices = rng.randint(2, 8)
    machine = Machine(rng, {f"g{i}": "gpu" for i in range(num_devices)}, rng.choice([None, num_devices]), calm_at=0.0)
    for i in range(num_devices):
        job = random_job(rng, f"early{i}", now=0.0, earlier=())
        machine.submit(
            replace(job, kind="gpu", devices=1, priority=0, limit_s=rng.choice([None, LONGEST_LIMIT_S])),
            work_s=rng.uniform(0, LONGEST_WORK_S),
        )
    machine.tick()
    submitted_at = machine.now
    large = Job(name="large", kind="gpu", devices=num_devices, submitted_at=submitted_at)
    machine.submit(large, work_s=100.0)
    bound_s = max(LONGEST_WORK_S, LONGEST_LIMIT_S) + LONGEST_STOP_S + 4 * TICK_S
    number = 0
    while "large" not in machine.first_starts:
        assert machine.now - submitted_at <= bound_s, f"seed {seed}: the large job starves"
        while sum(not job.assigned for job in machine.jobs.values()) < 4 * num_devices:
            number += 1
            job = random_job(rng, f"small{number}", now=machine.now + 1, earlier=())
            work_s = rng.uniform(0, 3 * LONGEST_WORK_S)
            machine.submit(replace(job, kind="gpu", devices=1, priority=0), work_s=work_s)
        machine.tick()


@pytest.mark.parametrize("seed", range(20))
def test_large_job_starts_in_time_although_small_ones_keep_coming(seed: int) -> None:
    run_stream(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1000, 2000, 50))
def test_many_large_jobs_start_in_time_although_small_ones_keep_coming(seed: int) -> None:
    for each in range(seed, seed + 50):
        run_stream(each)
