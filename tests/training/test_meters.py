"""The mean loss is one over samples, however unequal the batches are, whoever trained them, and after a resume."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from distrain.config.batching import solve_batching
from distrain.data.loading.sampler import EpochOrder, TrainSampler
from distrain.data.sources.base import Batch
from distrain.distributed.world import World
from distrain.training.meters import LossMeter, ThroughputMeter
from distrain.training.step_watch import Watch
from tests.processes import run_ranks

SAMPLES, BATCH = 81, 20  # five steps an epoch, of which the last has one sample
PER_EPOCH = 5
WATCH = Watch(nn.Linear(1, 1), every_step=False)


def build(world: World, micro_batch_size: int | None = None) -> tuple[LossMeter, TrainSampler]:
    order = TrainSampler(
        num_samples=SAMPLES,
        sampler=lambda epoch: EpochOrder(np.arange(SAMPLES, dtype=np.int64)),
        batching=solve_batching(BATCH, micro_batch_size, world.size, is_exact=False),
        drop_last=False,
        rank=world.rank,
    )
    return LossMeter(order, world, WATCH), order


def losses() -> torch.Tensor:
    """Return the losses of all samples, by their positions in two epochs."""
    return torch.rand(2, SAMPLES, generator=torch.Generator().manual_seed(3)).double() ** 4


def take(meter: LossMeter, order: TrainSampler, steps: range) -> None:
    for step in steps:
        epoch, place = divmod(step, PER_EPOCH)
        global_batch = order.global_batch(step)
        for index in global_batch.local:
            begin, end = global_batch.ranges[index]
            meter.add({"loss": losses()[epoch, place * BATCH + begin : place * BATCH + end].mean()})
        WATCH.note([])
    meter.sync_losses(steps)


def check(world: World, micro_batch_size: int | None) -> None:
    meter, order = build(world, micro_batch_size)
    take(meter, order, range(3))
    take(meter, order, range(3, 5))
    assert meter.pop_means()["loss"] == pytest.approx(losses()[0].mean().item(), rel=1e-12)
    assert meter.last_epoch() == pytest.approx(losses()[0].mean().item(), rel=1e-12)
    take(meter, order, range(5, 7))
    in_two_epochs = torch.cat([losses()[0, 2 * BATCH :], losses()[1, : 2 * BATCH]])
    assert meter.last_epoch() == pytest.approx(in_two_epochs.mean().item(), rel=1e-12)
    assert meter.pop_means()["loss"] == pytest.approx(losses()[1, : 2 * BATCH].mean().item(), rel=1e-12)


@pytest.mark.parametrize(("processes", "micro_batch_size"), [(1, None), (1, 5), (2, 5)])
def test_mean_is_over_samples_though_the_last_batch_holds_one(
    tmp_path: Path, processes: int, micro_batch_size: int | None
) -> None:
    run_ranks(check, tmp_path, processes, micro_batch_size)


def test_means_that_span_a_resume_are_those_of_an_unbroken_run() -> None:
    alone = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))
    whole, order = build(alone)
    take(whole, order, range(8))
    first, order = build(alone)
    take(first, order, range(6))
    kept = json.loads(json.dumps(first.state(has_epoch=True)))
    second, order = build(alone)
    second.load_state(kept, list(range(6)))
    take(second, order, range(6, 8))
    assert second.last_epoch() == whole.last_epoch()
    assert second.pop_means()["loss"] == whole.pop_means()["loss"]
    del kept["losses_of_epoch"]  # as in a checkpoint of a run that wants no target_loss
    third, order = build(alone)
    third.load_state(kept, list(range(6)))
    take(third, order, range(6, 8))
    assert math.isinf(third.last_epoch())
    take(whole, order, range(8, 10))
    take(third, order, range(8, 10))
    take(second, order, range(8, 10))
    assert third.state(has_epoch=False)["losses_since_record"][:6] == kept["losses_since_record"]
    assert second.pop_means()["loss"] == whole.pop_means()["loss"]


def test_there_is_no_speed_where_no_step_was_taken() -> None:
    meter = ThroughputMeter()
    assert meter.pop_rate() is None
    meter.add(2.0, 64, steps=1, epoch=0)
    assert meter.pop_rate() == 32.0
    assert meter.pop_rate() is None


def test_waits_for_batches_are_counted_apart_from_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("distrain.training.meters.time", SimpleNamespace(perf_counter=lambda: now[0]))

    def reading(seconds: list[float]) -> Iterator[Batch]:
        for each in seconds:
            now[0] += each
            yield torch.zeros(1), torch.zeros(1)

    meter = ThroughputMeter()
    batches = meter.timed(reading([1.0, 0.5, 0.0, 4.0]))
    for _ in range(2):
        next(batches)
        now[0] += 10  # a step, which is no wait
    meter.add(3.0, 64, steps=2, epoch=0)
    assert meter.pace == (2, 3.0, 1.5)
    next(batches)
    meter.add(1.0, 32, steps=1, epoch=0)
    assert meter.pace == (3, 4.0, 1.5)
    assert len(list(batches)) == 1
