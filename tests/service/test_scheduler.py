"""The queue starts what is first, backfills what delays nobody, and stops as little as it must."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from distrain.service.scheduler import PROTECTED_S, Decision, Device, Job, Start, decide

NOW = 1000.0


def gpus(number: int, *, busy: Sequence[int] = (), unusable: Sequence[int] = ()) -> list[Device]:
    """GPUs g0, g1, ...: the busy ones are held by a run, the unusable ones by something else."""
    return [
        Device(id=f"g{i}", kind="gpu", is_free=i not in {*busy, *unusable}, is_usable=i not in unusable)
        for i in range(number)
    ]


def waiting(name: str, devices: int = 1, **changes: Any) -> Job:
    return replace(Job(name=name, kind="gpu", devices=devices, submitted_at=100.0), **changes)


def running(name: str, *assigned: int, **changes: Any) -> Job:
    devices = tuple(f"g{i}" for i in assigned)
    job = Job(
        name=name, kind="gpu", devices=len(devices), submitted_at=0.0, assigned=devices, started_at=NOW - 50, priority=0
    )
    return replace(job, **changes)


def decided(jobs: Sequence[Job], devices: Sequence[Device] | int, **options: Any) -> Decision:
    """Decide now; where a number of GPUs is given, those of running jobs are busy."""
    if isinstance(devices, int):
        busy = [int(device[1:]) for job in jobs for device in job.assigned]
        devices = gpus(devices, busy=busy)
    decision = decide(jobs, devices, **{"now": NOW, "ended": {}, **options})
    again = decide(random.Random(0).sample(jobs, len(jobs)), devices, **{"now": NOW, "ended": {}, **options})
    assert again == decision, "the order of the jobs in the list does not matter"
    assert list(again.starts) == list(decision.starts)
    return decision


# Order


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"priority": 1, "submitted_at": 9.0}, {"is_first": True}),
        ({"is_first": True, "submitted_at": 9.0}, {"submitted_at": 1.0}),
        ({"submitted_at": 1.0}, {"submitted_at": 2.0}),
        ({}, {}),
    ],
    ids=["priority", "is_first", "submitted_at", "name"],
)
def test_jobs_start_by_priority_then_interruption_then_submission_then_name(
    first: Mapping[str, Any], second: Mapping[str, Any]
) -> None:
    jobs = [waiting("b", **second), waiting("a", **first)]
    assert list(decided(jobs, 2).starts) == ["a", "b"]
    assert list(decided(jobs, 1).starts) == ["a"]


def test_starts_of_both_kinds_are_in_the_order_of_the_queue() -> None:
    jobs = [waiting("a", submitted_at=3.0), waiting("b", kind="cpu", submitted_at=2.0), waiting("c", submitted_at=1.0)]
    devices = [*gpus(2), Device(id="cpu-0", kind="cpu", is_free=True)]
    decision = decided(jobs, devices)
    assert list(decision.starts) == ["c", "b", "a"]
    assert decision.starts["b"].devices == ("cpu-0",)


def test_backfilled_job_that_was_stopped_waits_behind_the_job_it_was_stopped_for() -> None:
    small = waiting("small", is_first=True, is_backfilled=True, preempted_at=NOW - 10, submitted_at=200.0)
    decision = decided([waiting("large", 2), small, running("r", 1, is_stopping=True)], 2)
    assert decision.starts == {}
    assert decision.waits == {
        "large": "waits for 2 GPUs (1 is free, 1 is being freed)",
        "small": "waits behind large",
    }


# Devices


def test_devices_are_the_first_free_ones_in_the_given_order() -> None:
    jobs = [waiting("a", 2), waiting("b", 1, submitted_at=200.0)]
    decision = decided(jobs, gpus(6, busy=[0], unusable=[2]))
    assert decision.starts == {
        "a": Start(("g1", "g3"), is_backfilled=False),
        "b": Start(("g4",), is_backfilled=False),
    }


def test_device_of_a_running_job_is_not_given_away_even_if_it_is_reported_free() -> None:
    decision = decided([running("r", 0), waiting("a")], gpus(2))
    assert decision.starts == {"a": Start(("g1",), is_backfilled=False)}


def test_unusable_device_is_not_given_away_even_if_it_is_reported_free() -> None:
    devices = [Device(id="g0", kind="gpu", is_free=True, is_usable=False)]
    assert decided([waiting("a")], devices).waits == {"a": "waits for 1 GPU (none is free)"}


def test_kinds_have_their_own_heads() -> None:
    devices = [*gpus(1), Device(id="cpu-0", kind="cpu", is_free=True), Device(id="cpu-1", kind="cpu", is_free=False)]
    cpu_job = running("r", kind="cpu", devices=1, assigned=("cpu-1",), priority=9)
    jobs = [
        waiting("cpu-head", 2, kind="cpu", priority=9, is_preemptible=False),
        waiting("gpu", 1, is_preemptible=False),
        waiting("cpu-behind", 1, kind="cpu", is_preemptible=False),
    ]
    decision = decided([*jobs, cpu_job], devices)
    assert decision.starts == {"gpu": Start(("g0",), is_backfilled=False)}
    assert decision.waits == {
        "cpu-head": "waits for 2 CPU slots (1 is free)",
        "cpu-behind": "waits behind cpu-head",
    }


# What is not ready, and what is impossible


@pytest.mark.parametrize(
    ("job", "ended", "why"),
    [
        (waiting("a", after=("x",)), {"x": "failed"}, "run x has failed"),
        (waiting("a", after=("x",)), {"x": "cancelled"}, "run x was cancelled"),
        (waiting("a", after=("x",)), {}, "run x does not exist"),
        (waiting("a", after=("y", "x")), {"y": "finished", "x": "failed"}, "run x has failed"),
        (waiting("a", 5), {}, "needs 5 GPUs; this machine has 4"),
        (waiting("a", kind="cpu"), {}, "needs 1 CPU slot; this machine has none"),
    ],
)
def test_impossible_job_says_so_and_reserves_nothing(job: Job, ended: Mapping[str, str], why: str) -> None:
    last = waiting("last", 1, submitted_at=200.0, is_preemptible=False)
    decision = decided([job, last], gpus(4), ended=ended)
    assert decision.impossible == {"a": why}
    assert decision.starts == {"last": Start(("g0",), is_backfilled=False)}
    assert decision.waits == {}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"after": ("r",)}, "waits for run r"),
        ({"after": ("done", "q", "r")}, "waits for runs q and r"),
        ({"after": ("halted",)}, "waits for run halted (stopped)"),
        ({"not_before": NOW + 29.5}, "waits 30 s after its process died"),
    ],
)
def test_job_that_is_not_ready_waits_and_reserves_nothing(changes: Mapping[str, Any], why: str) -> None:
    jobs = [
        waiting("a", 4, priority=9, **changes),
        running("r", 0),
        waiting("last", 1, is_preemptible=False),
        waiting("q", 1, submitted_at=900.0, is_preemptible=False),
    ]
    decision = decided(jobs, 3 + 1, ended={"done": "finished", "halted": "stopped", "r": "failed"})
    assert decision.waits == {"a": why}
    assert decision.starts == {
        "last": Start(("g1",), is_backfilled=False),
        "q": Start(("g2",), is_backfilled=False),
    }
    assert decision.stops == {}


def test_job_starts_when_the_runs_before_it_have_finished_and_its_back_off_is_over() -> None:
    decision = decided([waiting("a", after=("x", "y"), not_before=NOW)], 1, ended={"x": "finished", "y": "finished"})
    assert list(decision.starts) == ["a"]


# Backfilling


@pytest.mark.parametrize(
    ("job", "does_start"),
    [
        (waiting("b"), True),
        (waiting("b", is_preemptible=False), False),
        (waiting("b", preempted_at=NOW - PROTECTED_S + 1), False),
        (waiting("b", preempted_at=NOW - PROTECTED_S), True),
        (waiting("b", is_preemptible=False, limit_s=70.0), True),
        (waiting("b", is_preemptible=False, limit_s=71.0), False),
        (waiting("b", preempted_at=NOW - 1, limit_s=70.0), True),
        (waiting("b", 2), False),
    ],
    ids=["preemptible", "not", "protected", "no longer", "ends in time", "too late", "protected in time", "too large"],
)
def test_job_is_backfilled_if_it_can_be_stopped_or_ends_before_the_head_could_start(job: Job, does_start: bool) -> None:
    """The head needs g1 and g2: r1, which cannot be stopped, ends at the latest at 1070."""
    head = waiting("head", 3, submitted_at=50.0)
    r0 = running("r0", 0, limit_s=60.0, priority=1)  # ends at 1010
    r1 = running("r1", 1, limit_s=120.0, priority=1)  # ends at 1070
    decision = decided([r0, r1, head, job], 3)
    assert decision.starts == ({"b": Start(("g2",), is_backfilled=True)} if does_start else {})
    assert decision.waits["head"] == "waits for 3 GPUs (1 is free)"
    assert decision.stops == {}


@pytest.mark.parametrize(
    ("other", "devices", "does_start"),
    [
        (running("r", 0, priority=1), gpus(2, busy=[0]), False),  # may end now
        (running("r", 0, priority=1, limit_s=150.0), gpus(2, busy=[0]), True),  # at 1100
        (running("r", 0, priority=1, limit_s=149.0), gpus(2, busy=[0]), False),  # at 1099
        (running("r", 0, priority=1, limit_s=150.0, is_stopping=True), gpus(2, busy=[0]), False),  # now
        (running("r", 0, priority=-1, limit_s=150.0, preempted_at=NOW - 299), gpus(2, busy=[0]), False),  # stopped soon
        (waiting("r", priority=1), gpus(2), False),  # starts now, and may end at any time
        (waiting("r", priority=1, limit_s=100.0), gpus(2), True),  # starts now, and ends at 1100
        (None, gpus(2, unusable=[0]), True),  # never
        (None, gpus(2, busy=[0]), False),  # held by a run that has ended
    ],
)
def test_head_could_start_when_the_last_of_its_devices_may_become_free(
    other: Job | None, devices: list[Device], does_start: bool
) -> None:
    """The head needs both; a job that runs until 1100 and cannot be stopped is backfilled on g1 if g0 is later."""
    short = waiting("short", is_preemptible=False, limit_s=100.0, submitted_at=200.0)
    decision = decided([waiting("head", 2), short, *([other] if other else [])], devices)
    assert decision.starts.get("short") == (Start(("g1",), is_backfilled=True) if does_start else None)
    assert "head" in decision.waits


@pytest.mark.parametrize(
    "other", [running("r", 0, priority=1, is_stopping=True, limit_s=900.0), None], ids=["stopping", "held"]
)
@pytest.mark.parametrize(("limit_s", "does_start"), [(70.0, True), (71.0, False)])
def test_what_is_given_back_soon_does_not_delay_when_the_head_could_start(
    other: Job | None, limit_s: float, does_start: bool
) -> None:
    """The head needs g0, which is given back now, g1, which is free at 1070, and g2, which is free."""
    fixed = running("fixed", 1, priority=1, limit_s=120.0)
    short = waiting("short", is_preemptible=False, limit_s=limit_s, submitted_at=200.0)
    jobs = [waiting("head", 3), short, fixed, *([other] if other else [])]
    assert ("short" in decided(jobs, gpus(3, busy=[0, 1])).starts) is does_start


def test_only_the_first_job_that_does_not_fit_reserves() -> None:
    jobs = [waiting("head", 4), waiting("second", 3, submitted_at=200.0), waiting("third", 1, submitted_at=300.0)]
    decision = decided([*jobs, running("r", 0, 1)], 4)
    assert decision.starts == {"third": Start(("g2",), is_backfilled=True)}
    assert decision.waits == {"head": "waits for 4 GPUs (2 are free)", "second": "waits for 3 GPUs (2 are free)"}


def test_devices_that_are_being_freed_for_the_head_are_not_backfilled_but_those_beyond_are() -> None:
    """With g0 and g1, which become free, there are 6 for the head's 5: one is left for others."""
    jobs = [waiting("head", 5, priority=1), waiting("b", 2), waiting("a", 1, submitted_at=200.0)]
    decision = decided([*jobs, running("r", 0, 1, is_stopping=True)], 6)
    assert decision.starts == {"a": Start(("g2",), is_backfilled=True)}
    assert decision.waits == {"head": "waits for 5 GPUs (4 are free, 2 are being freed)", "b": "waits behind head"}


def test_job_that_cannot_be_stopped_is_not_backfilled_even_on_devices_that_the_head_does_not_need() -> None:
    jobs = [waiting("head", 3), waiting("b", submitted_at=200.0, is_preemptible=False)]
    decision = decided([*jobs, running("r", 0, 1, is_stopping=True)], 4)
    assert decision.starts == {}
    assert decision.waits["b"] == "waits behind head"


# Stopping for the head


@pytest.mark.parametrize(
    ("changes", "is_victim"),
    [
        ({"priority": 4}, True),
        ({"priority": 5}, False),
        ({"priority": 6}, False),
        ({"priority": 4, "is_preemptible": False}, False),
        ({"priority": 5, "is_backfilled": True, "submitted_at": 101.0}, True),
        ({"priority": 5, "is_backfilled": True, "submitted_at": 99.0}, False),
        ({"priority": 5, "is_backfilled": True, "submitted_at": 101.0, "is_first": True}, True),
        ({"priority": 5, "is_backfilled": True, "submitted_at": 101.0, "is_preemptible": False}, False),
        ({"priority": 6, "is_backfilled": True, "submitted_at": 101.0}, False),
        ({"priority": 4, "preempted_at": NOW - PROTECTED_S + 0.5}, False),
        ({"priority": 4, "preempted_at": NOW - PROTECTED_S}, True),
    ],
)
def test_head_stops_what_has_a_lower_priority_or_was_backfilled_from_behind_it(
    changes: Mapping[str, Any], is_victim: bool
) -> None:
    decision = decided([waiting("head", 2, priority=5), running("r", 0, **changes)], 2)
    assert decision.stops == ({"r": "for head"} if is_victim else {})
    assert decision.starts == {}
    freed = ", 1 is being freed" if is_victim else ""
    assert decision.waits == {"head": f"waits for 2 GPUs (1 is free{freed})"}


def test_job_of_the_other_kind_is_not_stopped() -> None:
    cpu_job = running("r", kind="cpu", devices=1, assigned=("cpu-0",))
    devices = [*gpus(2, unusable=[0]), Device(id="cpu-0", kind="cpu", is_free=False)]
    assert decided([waiting("head", 2, priority=5), cpu_job], devices).stops == {}


@pytest.mark.parametrize(
    ("victims", "stopped"),
    [
        ([running("a", 0), running("b", 1, 2, 3)], {"b"}),  # the head needs 2 of g0 to g5: one job is enough
        ([running("a", 0), running("b", 1), running("c", 2, 3, priority=4)], {"c"}),  # fewer beats lower priority
        ([running("a", 0), running("b", 1), running("c", 2, 3, 4, priority=4)], {"c"}),  # and less surplus
        ([running("a", 0, 1, 2, priority=1), running("b", 3, 4, priority=2)], {"a"}),  # priority beats surplus
        ([running("a", 0, 1, 2, started_at=NOW), running("b", 3, 4)], {"b"}),  # surplus beats time
        ([running("a", 0, 1), running("b", 2, 3, started_at=NOW - 49)], {"b"}),  # time
        ([running("a", 0, 1), running("b", 2, 3)], {"a"}),  # name
        (
            [running("a", 0, priority=3), running("b", 1, priority=1), running("c", 2, priority=2)],
            {"b", "c"},
        ),
        (
            [running("a", 0, priority=-9), running("b", 1, priority=3), running("c", 2), running("d", 3)],
            {"a", "c"},  # the highest of both is 0, as with d; c and d would have a higher second
        ),
        ([running("a", 0), running("b", 1, priority=5)], set()),  # not enough: nothing is stopped
    ],
)
def test_fewest_jobs_of_the_lowest_priority_with_the_least_surplus_and_time_are_stopped(
    victims: list[Job], stopped: set[str]
) -> None:
    rest = [i for i in range(6) if not any(f"g{i}" in job.assigned for job in victims)]
    fixed = running("fixed", *rest, is_preemptible=False)
    decision = decided([waiting("head", 2, priority=5), fixed, *victims], 6)
    assert set(decision.stops) == stopped
    assert set(decision.stops.values()) <= {"for head"}


def test_free_devices_and_jobs_that_are_stopping_count_before_more_are_stopped() -> None:
    jobs = [running("a", 0), running("b", 1), running("c", 2), waiting("head", 3, priority=1)]
    decision = decided(jobs, 4)
    assert decision.stops == {"a": "for head", "b": "for head"}
    stopping = [replace(job, is_stopping=job.name in decision.stops) for job in jobs]
    assert decided(stopping, 4).stops == {}
    one_has_stopped = [job for job in stopping if job.name != "a"]
    assert decided(one_has_stopped, 4).stops == {}
    assert decided([job for job in one_has_stopped if job.name != "b"], 4).starts == {
        "head": Start(("g0", "g1", "g3"), is_backfilled=False)
    }


def test_device_that_an_ended_run_still_holds_counts_before_more_are_stopped() -> None:
    jobs = [running("a", 0), waiting("head", 2, priority=1), waiting("small")]
    decision = decided(jobs[1:], gpus(2, busy=[0]))
    assert decision.starts == {}, "what the head will use in a moment is not given away"
    assert decision.waits["head"] == "waits for 2 GPUs (1 is free, 1 is being freed)"
    assert decided(jobs, gpus(3, busy=[0, 1])).stops == {}
    assert decided(jobs, gpus(3, busy=[0], unusable=[1])).stops == {"a": "for head"}


def test_drained_device_of_a_running_job_is_not_counted_as_freed() -> None:
    jobs = [running("a", 0), running("b", 1, priority=1), waiting("head", 1, priority=2)]
    assert decided(jobs, gpus(2, busy=[1], unusable=[0])).stops == {"b": "for head"}
    assert decided(jobs[::2], gpus(2, unusable=[0, 1])).stops == {}
    assert decided([jobs[0], waiting("head", 1, priority=2)], gpus(3, unusable=[1, 2])[1:]).stops == {}


def test_only_the_head_stops_others() -> None:
    jobs = [
        waiting("head", 4, priority=9),
        waiting("second", 1, priority=8),
        running("fixed", 0, is_preemptible=False),
        running("r", 1, 2, 3),
    ]
    assert decided(jobs, 4).stops == {}
    assert decided(jobs[1:], 4).stops == {"r": "for second"}


def test_victims_of_many_jobs_are_found_at_once() -> None:
    """Of 128 jobs of 1 device, the 96 of the lowest priorities; brute force would need 10^30 trials."""
    jobs = [running(f"r{i:03}", i, priority=i % 4) for i in range(128)]
    decision = decided([*jobs, waiting("head", 96, priority=9)], 128)
    assert set(decision.stops) == {job.name for job in jobs if job.priority < 3}


# Limits, hold


@pytest.mark.parametrize(("limit_s", "is_stopped"), [(49.0, True), (50.0, True), (51.0, False), (None, False)])
def test_job_past_its_time_limit_is_stopped(limit_s: float | None, is_stopped: bool) -> None:
    job = running("r", 0, limit_s=limit_s, is_preemptible=False)
    assert decided([job], 1).stops == ({"r": "time limit"} if is_stopped else {})
    assert decided([replace(job, is_stopping=True)], 1).stops == {}


def test_job_that_is_stopped_at_its_limit_counts_for_the_head() -> None:
    jobs = [running("a", 0, limit_s=1.0, is_preemptible=False), running("b", 1), waiting("head", 1, priority=1)]
    decision = decided(jobs, 2)
    assert decision.stops == {"a": "time limit"}
    assert decision.waits == {"head": "waits for 1 GPU (none is free, 1 is being freed)"}


def test_nothing_starts_or_stops_on_hold() -> None:
    jobs = [
        waiting("head", 2, priority=9),
        waiting("small"),
        waiting("late", after=("r",)),
        waiting("never", after=("x",)),
        running("r", 0, limit_s=1.0),
    ]
    decision = decided(jobs, 3, on_hold="the disk has only 80 MB free")
    assert decision == Decision(
        waits={
            "head": "the disk has only 80 MB free",
            "small": "the disk has only 80 MB free",
            "late": "waits for run r",
        },
        impossible={"never": "run x does not exist"},
    )


# The most devices at once


def test_no_more_devices_than_allowed_are_used_at_once() -> None:
    jobs = [running("r", 0), running("s", 1, is_stopping=True), waiting("a"), waiting("b", submitted_at=200.0)]
    decision = decided(jobs, 8, max_devices=3)
    assert decision.starts == {"a": Start(("g2",), is_backfilled=False)}
    assert decision.waits == {"b": "waits for 1 GPU (this queue may use no more, 1 is being freed)"}
    assert decided(jobs, 8, max_devices=1).starts == {}


def test_job_that_needs_more_devices_than_allowed_is_impossible() -> None:
    assert decided([waiting("a", 3)], 8, max_devices=2).impossible == {"a": "needs 3 GPUs; this queue may use 2"}
    assert decided([waiting("a", 1)], 8, max_devices=0).impossible == {"a": "needs 1 GPU; this queue may use none"}


def test_head_stops_others_where_only_the_allowance_is_short() -> None:
    jobs = [running("a", 0), running("b", 1, 2), waiting("head", 2, priority=1), waiting("c", submitted_at=200.0)]
    decision = decided(jobs, 8, max_devices=4)
    assert decision.stops == {"a": "for head"}
    assert decision.starts == {}
    assert decision.waits == {
        "head": "waits for 2 GPUs (this queue may use 1 more, 1 is being freed)",
        "c": "waits behind head",
    }


def test_drained_device_is_freed_for_the_allowance_alone() -> None:
    """Two more are allowed when `a` stops, on g1 and g2, although its g0 does not become free."""
    jobs = [running("a", 0, 3), running("b", 4, 5, priority=1), waiting("head", 2, priority=2)]
    assert decided(jobs, gpus(6, busy=[3, 4, 5], unusable=[0]), max_devices=4).stops == {"a": "for head"}


def test_allowance_counts_for_when_the_head_could_start() -> None:
    jobs = [
        running("r", 0, 1, priority=1, limit_s=150.0),  # ends at 1100
        waiting("head", 2),
        waiting("short", submitted_at=200.0, is_preemptible=False, limit_s=100.0),
    ]
    assert list(decided(jobs, 8, max_devices=3).starts) == ["short"]
    assert list(decided([*jobs[:2], replace(jobs[2], limit_s=101.0)], 8, max_devices=3).starts) == []


def test_each_kind_has_its_own_allowance() -> None:
    devices = [*gpus(2), Device(id="cpu-0", kind="cpu", is_free=True)]
    jobs = [waiting("a"), waiting("b", kind="cpu"), waiting("c", submitted_at=200.0)]
    assert list(decided(jobs, devices, max_devices=1).starts) == ["a", "b"]
