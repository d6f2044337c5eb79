"""Measures a run: losses, kept on the device until they are read, and throughput."""

import math
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from operator import mul
from typing import Any, NamedTuple

import torch

from distrain.data.loading.sampler import TrainSampler
from distrain.data.sources.base import Batch
from distrain.distributed.world import World
from distrain.training.step_watch import Watch


class SyncedLosses(NamedTuple):
    """What the host knows of a step besides its mean loss."""

    bad_micro_batches: tuple[int, ...]  # the micro-batches whose loss is not finite
    is_marked: bool  # whether the watch found a gradient, weight or buffer that is not finite


_FINITE = SyncedLosses((), is_marked=False)


class LossMeter:
    """The losses of the steps since the last record: on the device until they are synced, then exact on the host.

    Means are over samples: steps are weighted by their samples, since the last one of an epoch may have fewer. The
    losses are part of a checkpoint, so that a record that spans a resume has the same mean.
    """

    def __init__(self, sampler: TrainSampler, world: World, watch: Watch, *, others: Sequence[str] = ()) -> None:
        """`others` are the names of the losses that are recorded besides `loss`."""
        self._since_record: list[_StepLoss] = []
        self._others_since_record: dict[str, list[_StepLoss]] = {name: [] for name in others}
        self._last_epoch: deque[_StepLoss] = deque(maxlen=sampler.steps_per_epoch)
        self._epoch, self._epoch_sum, self._epoch_samples = 0, 0.0, 0  # over the samples of the epoch so far
        self._pending: list[torch.Tensor] = []  # the mean loss of each micro-batch of this rank
        self._pending_others: dict[str, list[torch.Tensor]] = {name: [] for name in others}
        self._sampler = sampler
        self._world = world
        self._watch = watch

    def add(self, losses: Mapping[str, torch.Tensor]) -> None:
        """Add the mean losses of this rank's next micro-batch by their names, without waiting for the device."""
        self._pending.append(losses["loss"].detach())
        for name, pending in self._pending_others.items():
            pending.append(losses[name].detach())

    def sync_losses(self, steps: Sequence[int]) -> list[SyncedLosses]:
        """Copy the losses of `steps` to the host, and return for each step whether everything in it is finite.

        This is the loop's only regular device synchronization. The mean of a step is over the micro-batches of all
        ranks and exactly rounded, so that it does not depend on how they are distributed.
        """
        if not steps:
            return []
        global_batches = [self._sampler.global_batch(step) for step in steps]
        width = max(global_batch.num_micro_batches for global_batch in global_batches)
        indices = [
            row * width + index for row, global_batch in enumerate(global_batches) for index in global_batch.local
        ]
        pending = [self._pending, *self._pending_others.values()]
        losses = torch.zeros(len(pending), len(steps) * width, dtype=torch.float64, device=self._world.device)
        if self._pending:
            values = torch.stack([loss for kind in pending for loss in kind]).double().view(len(pending), -1)
            losses[:, torch.tensor(indices, device=losses.device)] = values
            for kind in pending:
                kind.clear()
        reduced = self._world.all_reduce(torch.cat([losses.view(-1), self._watch.pop_marks(losses.device)]))
        rows, *others = reduced[: losses.numel()].view(len(pending), -1, width).tolist()  # exact: each is one rank's
        marks = reduced[losses.numel() :].tolist()
        # The row of a global batch with fewer micro-batches is padded with zeros.
        totals = [_total(row, global_batch.sizes) for row, global_batch in zip(rows, global_batches, strict=True)]
        self._keep(steps, totals, [global_batch.num_samples for global_batch in global_batches])
        for means, of_steps in zip(self._others_since_record.values(), others, strict=True):
            means += [
                _StepLoss(_total(row, global_batch.sizes) / global_batch.num_samples, global_batch.num_samples)
                for row, global_batch in zip(of_steps, global_batches, strict=True)
            ]
        if not any(marks) and all(map(math.isfinite, totals)):
            return [_FINITE] * len(steps)
        return [SyncedLosses(_bad_micro_batches(row), mark > 0) for row, mark in zip(rows, marks, strict=True)]

    def _keep(self, steps: Sequence[int], totals: Sequence[float], counts: Sequence[int]) -> None:
        """Add the total loss of each of the steps, over all its samples, and the number of these."""
        means = [_StepLoss(total / count, count) for total, count in zip(totals, counts, strict=True)]
        self._since_record += means
        self._last_epoch += means
        epoch = steps[-1] // self._sampler.steps_per_epoch
        first = bisect_left(steps, epoch * self._sampler.steps_per_epoch)  # of the newest epoch
        if epoch != self._epoch:
            self._epoch, self._epoch_sum, self._epoch_samples = epoch, 0.0, 0
        for total in totals[first:]:  # one by one: wherever a resume begins, the sum is the same
            self._epoch_sum += total
        self._epoch_samples += sum(counts[first:])

    @property
    def has_synced(self) -> bool:
        """Whether a step has been synced since the last record."""
        return bool(self._since_record)

    @property
    def epoch_mean(self) -> float | None:
        """The mean loss over the samples of the newest epoch so far; None if none of its steps is known."""
        return self._epoch_sum / self._epoch_samples if self._epoch_samples else None

    def last_epoch(self) -> float:
        """Return the mean loss over the samples of the last steps, as many as an epoch has; infinite before."""
        if len(self._last_epoch) < self._sampler.steps_per_epoch:
            return math.inf
        return _mean(self._last_epoch)

    def pop_means(self) -> dict[str, float]:
        """Return the mean over the samples of the synced steps, at least one, of each loss, and start over."""
        means = {"loss": _mean(self._since_record)}
        means |= {name: _mean(steps) for name, steps in self._others_since_record.items()}
        self._since_record = []
        self._others_since_record = {name: [] for name in self._others_since_record}
        return means

    def state(self, *, has_epoch: bool) -> dict[str, Any]:
        """Return the state for a checkpoint: the mean losses of the steps since the last record, and of the last epoch.

        `epoch_loss` is the sum of the losses over the samples of the newest epoch so far, and the number of samples.
        """
        state: dict[str, Any] = {
            "losses_since_record": [step.mean for step in self._since_record],
            "epoch_loss": [self._epoch_sum, self._epoch_samples],
        }
        if self._others_since_record:
            others = self._others_since_record.items()
            state["other_losses_since_record"] = {name: [step.mean for step in means] for name, means in others}
        return state | ({"losses_of_epoch": [step.mean for step in self._last_epoch]} if has_epoch else {})

    def load_state(self, state: Mapping[str, Any], steps: Sequence[int]) -> None:
        """Restore from a checkpoint; `steps` are those that were trained up to it, the last ones at least."""
        self._since_record = self._with_samples(state["losses_since_record"], steps)
        others = state.get("other_losses_since_record", {})
        self._others_since_record = {
            name: self._with_samples([math.nan if mean is None else mean for mean in others.get(name, [])], steps)
            for name in self._others_since_record
        }
        self._last_epoch.clear()
        self._last_epoch += self._with_samples(state.get("losses_of_epoch", []), steps)
        self._epoch = steps[-1] // self._sampler.steps_per_epoch if steps else 0
        self._epoch_sum, self._epoch_samples = state.get("epoch_loss", (0.0, 0))  # not in earlier versions

    def _with_samples(self, means: list[float], steps: Sequence[int]) -> "list[_StepLoss]":
        last = steps[len(steps) - len(means) :]
        return [_StepLoss(mean, self._sampler.global_batch(s).num_samples) for mean, s in zip(means, last, strict=True)]


class _StepLoss(NamedTuple):
    mean: float  # over the samples of the step, all ranks'
    num_samples: int


def _total(losses: Sequence[float], sizes: Sequence[int]) -> float:
    """Return the sum of mean losses times their numbers of samples, exactly rounded; NaN if it is not finite."""
    if len(sizes) == 1:
        return losses[0] * sizes[0]
    try:
        return math.fsum(map(mul, losses, sizes))
    except (OverflowError, ValueError):  # beyond the largest number, or infinities of both signs
        return math.nan


def _bad_micro_batches(losses: Sequence[float]) -> tuple[int, ...]:
    return tuple(index for index, loss in enumerate(losses) if not math.isfinite(loss))


def _mean(steps: Collection[_StepLoss]) -> float:
    """Return the mean over the samples of all these steps, exactly rounded from the means of the steps."""
    return math.fsum(mean * samples for mean, samples in steps) / sum(samples for _, samples in steps)


class Pace(NamedTuple):
    """The totals of this rank's steps in this attempt."""

    steps: int = 0
    seconds: float = 0.0
    waited_s: float = 0.0  # of these, for batches


class ThroughputMeter:
    """Counts the seconds and samples of training steps, since the last reading and in the newest epoch."""

    def __init__(self) -> None:
        self.pace = Pace()  # replaced as a whole: another thread reads it
        self._waited_s = 0.0
        self._seconds = 0.0
        self._samples = 0
        self._epoch, self._epoch_seconds, self._epoch_samples = 0, 0.0, 0

    def timed(self, batches: Iterator[Batch]) -> Generator[Batch, None, None]:
        """Yield the batches, and count the seconds until each is there, of which the host does nothing else."""
        clock = time.perf_counter
        while True:
            asked_s = clock()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self._waited_s += clock() - asked_s
            yield batch

    def add(self, seconds: float, samples: int, *, steps: int, epoch: int) -> None:
        """Count `steps` consecutive steps, the last of which belongs to `epoch`."""
        self.pace = Pace(self.pace.steps + steps, self.pace.seconds + seconds, self._waited_s)
        self._seconds += seconds
        self._samples += samples
        if epoch != self._epoch:
            self._epoch, self._epoch_seconds, self._epoch_samples = epoch, 0.0, 0
        self._epoch_seconds += seconds
        self._epoch_samples += samples

    @property
    def epoch_rate(self) -> float | None:
        """Samples per second over all ranks in the newest epoch so far; None if this attempt took no step of it."""
        return self._epoch_samples / max(self._epoch_seconds, 1e-9) if self._epoch_samples else None

    def pop_rate(self) -> float | None:
        """Return samples per second over all ranks, and start over; None if there was no step since the last call."""
        rate = self._samples / max(self._seconds, 1e-9) if self._samples else None
        self._seconds, self._samples = 0.0, 0
        return rate
