"""The state of a training has one owner; what is written of it are copies."""

import pytest

from distrain.runs.status import SkippedBatch, Status
from distrain.training import train_state
from distrain.training.train_state import TrainState


class Clock:
    """The time module of a test: `monotonic` is what the test says."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return 1e9 + self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(train_state, "time", clock)
    return clock


def test_time_left_is_that_of_the_steps_left_at_the_pace_of_this_attempt(clock: Clock) -> None:
    state = TrainState()
    state.load(Status(step=10, total_steps=20, train_seconds=1000))
    state.begin_attempt(world_size=1, first_step=10, total_steps=20)
    assert state.snapshot().eta_s is None
    clock.now += 8
    state.step = 14  # four steps of this attempt, six are left
    found = state.snapshot()
    assert found.eta_s == 12
    assert found.train_seconds == state.train_seconds == 1008
    assert state.seconds_per_step == 2


def test_snapshot_does_not_change_with_the_training() -> None:
    state = TrainState()
    state.begin_attempt(world_size=1, total_steps=9, steps_per_epoch=4)
    before = state.snapshot("running")
    state.step = 6
    state.keep_evaluation(6, {"val/top1": 0.5, "top1": 0.5})
    state.skip(SkippedBatch(step=3, cause="the loss"))
    state.stop_at(7)
    after = state.snapshot()
    assert (before.step, before.total_steps, before.rollbacks, before.last) == (0, 9, 0, None)
    assert (after.step, after.total_steps, after.rollbacks, after.epoch) == (6, 7, 1, 1.5)
    assert after.state == after.attempts[-1].state == "running"
    assert after.attempts[-1].ended is None


def test_end_of_an_attempt_is_written_with_its_state(clock: Clock) -> None:
    state = TrainState()
    state.begin_attempt(world_size=1)
    found = state.snapshot("stopped")
    assert found.attempts[-1].state == "stopped"
    assert found.attempts[-1].ended == clock.time()


def test_attempt_after_a_rollback_follows_one_that_failed() -> None:
    state = TrainState()
    state.begin_attempt(world_size=1, total_steps=9)
    state.step = 5
    state.snapshot("running")
    state.skip(SkippedBatch(step=5, cause="the loss"))
    state.begin_attempt(world_size=1, first_step=4, total_steps=9)
    found = state.snapshot()
    assert [attempt.state for attempt in found.attempts] == ["failed", "starting"]
    assert [attempt.last_step for attempt in found.attempts] == [5, 4]
    assert [batch.step for batch in found.skipped_batches] == [5]


def test_diagnosis_is_that_of_the_newest_attempt() -> None:
    state = TrainState()
    state.begin_attempt(world_size=2)
    state.keep_diagnosis("GPU 0 is hot")
    state.keep_diagnosis("rank 1 waits")
    assert state.snapshot().diagnosis == ["GPU 0 is hot", "rank 1 waits"]
    state.load(Status.model_validate_json(state.snapshot().model_dump_json()))
    state.begin_attempt(world_size=2)
    assert state.snapshot().diagnosis == []
