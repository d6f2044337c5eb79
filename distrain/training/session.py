"""Holds all parts of training on one rank: data, network, strategy, optimizer, meters."""

import platform
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from distrain.checkpoint.tensors import Tensors, average_tensors, gather_tensors, schedule_tensors, slow_tensors
from distrain.checkpoint.writer import Checkpointer
from distrain.config import Recipe
from distrain.config.intervals import Intervals
from distrain.config.profile import Profile
from distrain.data.loading.loader import BatchReader
from distrain.data.loading.sampler import TrainSampler
from distrain.data.sources.base import Batch
from distrain.data.transforms.pipeline import Normalize
from distrain.distributed.compile import Compilation
from distrain.distributed.extra_state import ExtraState
from distrain.distributed.parallelize import Strategy
from distrain.distributed.stop_consensus import StopConsensus
from distrain.distributed.world import World
from distrain.models.freezing import Freezing
from distrain.runs.directory import RunDirectory
from distrain.training.device.batch_transforms import BatchTransform
from distrain.training.device.precision import Precision
from distrain.training.hooks.calls import Hooks
from distrain.training.machine.sampler import MachineSampler
from distrain.training.meters import LossMeter, ThroughputMeter
from distrain.training.metrics.selection import ChosenMetrics
from distrain.training.monitor import RankMonitor
from distrain.training.optim.clipping import Clip
from distrain.training.optim.schedules import LrSchedule
from distrain.training.optim.weight_averaging import AveragedWeights, LookaheadWeights, ScheduleFreeWeights
from distrain.training.profiler import Profiler
from distrain.training.skipped_steps import SkippedSteps
from distrain.training.step_watch import Watch
from distrain.training.tasks.build import TaskCalls
from distrain.training.train_state import TrainState

SAMPLING = "sampling"  # the entry of the fingerprint with the order that the user's own weights give

Ending = Literal["target_loss", "max_time", "patience"]  # the field of `train` that has ended a run


@dataclass(frozen=True)
class Session:
    """All parts of training on this rank. Only its tensors and meters change."""

    recipe: Recipe
    profile: Profile
    run: RunDirectory
    world: World
    train_reader: BatchReader
    val_reader: BatchReader
    normalize: Normalize
    prepare: BatchTransform
    draws_anywhere: bool  # the user's code may draw random numbers from NumPy's and Python's generators
    sampler: TrainSampler
    total_steps: int
    intervals: Intervals
    compilation: Compilation | None
    strategy: Strategy
    freezing: Freezing
    task: TaskCalls
    class_weights: torch.Tensor | None  # float32 [classes], those in the loss; saved, for who evaluates a checkpoint
    metrics: ChosenMetrics
    optimizer: torch.optim.Optimizer
    lookahead: LookaheadWeights | None
    average: AveragedWeights | None
    schedule: LrSchedule
    clip: Clip | None
    precision: Precision
    watch: Watch
    losses: LossMeter
    stopwatch: ThroughputMeter
    checkpointer: Checkpointer
    first: Batch  # the first training samples, augmented but not yet normalized, as read
    extra: ExtraState
    unsaved: list[str]  # state of the user's code that training changes and checkpoints do not store
    unwrapped_copy: nn.Module | None  # for the loggers: on the CPU; None if it cannot be copied
    skipped: SkippedSteps
    fingerprint: dict[str, str]  # of the data by split, and of the user's own order; empty on other ranks
    input: dict[str, Any]  # of the exported network: image_channels, dtype, shape
    monitor: RankMonitor
    machine: MachineSampler
    peak_share_of_sample: float | None  # seconds of a sample if all GPUs worked at their peak; None if not known
    stop: StopConsensus
    profiler: Profiler
    ending: Ending | None = None  # why `total_steps` is less than planned
    hooks: Hooks | None = None  # the user's, on rank 0 alone

    @property
    def state(self) -> TrainState:
        """The state of this rank and of the run."""
        return self.monitor.state

    @property
    def model(self) -> nn.Module:
        """The unwrapped network."""
        return self.strategy.module

    @property
    def idle_batch(self) -> Batch:
        """A few samples on the device, for a rank that has none while others make a collective pass."""
        images, targets = self.first
        return self.normalize(images.to(self.world.device)), targets.to(self.world.device)

    @property
    def averaged_weights(self) -> Tensors:
        """The averaged and slow weights that the recipe uses, by their names in a checkpoint."""
        average = self.average
        averages = {} if average is None else average_tensors(average.tensors) | average.own_state
        return averages | ({} if self.lookahead is None else slow_tensors(self.lookahead.tensors))

    def tensors(self) -> Tensors:
        """Return all tensors of the training by their names in a checkpoint; they share memory with it.

        Extra state is copied. All ranks must call it together.
        """
        return {
            **gather_tensors(self.model, self.optimizer),
            **self.averaged_weights,
            **schedule_tensors(self.schedule.tensors()),
            **self.extra.gather(self.world),
        }

    @property
    def unforeseen(self) -> list[str]:
        """What about the training no plan can know, one sentence each: it follows from what happens in it."""
        found, recipe = list[str](), self.recipe
        if self.schedule.is_stateful:
            found.append(
                f"the learning rates cannot be foreseen: schedule.name={recipe.schedule.name} has a state that follows "
                "the training"
            )
        if isinstance(self.average, ScheduleFreeWeights):
            found.append(
                f"optimizer.name={recipe.optimizer.name} has no schedule that could be foreseen: its average of the "
                "weights replaces it, and each evaluation and checkpoint computes that"
            )
        return found

    def close(self) -> None:
        """End threads and process groups before the process builds another session; all ranks must call it together."""
        self.checkpointer.close()
        self.strategy.close()

    def epoch(self, step: int) -> float:
        """Return the number of epochs in `step` steps."""
        return round(step / self.sampler.steps_per_epoch, 4)

    def num_samples(self, first_step: int, last_step: int) -> int:
        """Return the number of training samples in the steps from `first_step` up to, not including, `last_step`.

        Skipped steps have none.
        """
        size, spe = self.sampler.batching.global_batch_size, self.sampler.steps_per_epoch
        missing = size - self.sampler.global_batch(spe - 1).num_samples  # from the last global batch of each epoch
        skipped_samples = sum(
            self.sampler.global_batch(step).num_samples for step in self.skipped.between(first_step, last_step)
        )
        return (last_step - first_step) * size - (last_step // spe - first_step // spe) * missing - skipped_samples

    def last_trained(self, step: int) -> list[int]:
        """Return the last trained steps before `step`, counted from 0: as many as any mean of the losses needs."""
        most = max(self.sampler.steps_per_epoch, self.recipe.log.every_steps)
        first = max(0, step - most - len(self.skipped.between(0, step)))
        return [before for before in range(first, step) if before not in self.skipped]

    def numerics_fingerprint(self) -> dict[str, str | int]:
        """Return what the bits of the result depend on besides the recipe."""
        is_cuda = self.world.device.type == "cuda"
        processor = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
        numerics_fingerprint: dict[str, str | int] = {
            "threads": self.profile.threads,
            "device": torch.cuda.get_device_name() if is_cuda else processor,
            "torch": torch.__version__,
            "compute.memory_format": self.recipe.compute.memory_format,
            "compute.compile": self.recipe.compute.compile,
        }
        if is_cuda:
            numerics_fingerprint["compute.tf32"] = str(self.recipe.has_tf32).lower()
        if not self.recipe.train.exact:
            numerics_fingerprint |= {"processes": self.world.size, "strategy": self.strategy.name}
        return numerics_fingerprint
