"""Defines the protocol of a task: what is learned from a batch, and what of it is measured."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from distrain.config import Recipe
from distrain.config.metrics import Target
from distrain.data.sources.base import Batch
from distrain.tensors.module_state import LossFunction

Losses = dict[str, torch.Tensor]  # means over the samples of a micro-batch, one number each
Sums = dict[str, torch.Tensor]  # over the samples of a batch, of any shape
TaskLosses = Callable[[nn.Module, Batch], Losses]  # `Task.loss`
TaskSums = Callable[[nn.Module, Batch], Sums]  # `Task.evaluate`
LOSS = "loss"  # the one of the losses that is minimised, and the sum by which evaluations are compared
CONFUSION = "confusion"  # counts int64 [classes, classes], a row for a true class, that are shown as such a matrix
OUTPUTS = "outputs"  # no sum, but the outputs [n, outputs] of the samples, from which eval.metrics are computed


@dataclass(frozen=True)
class TaskSetup:
    """What a task is set up with, the same on every rank."""

    recipe: Recipe
    network: nn.Module  # bare, on the CPU, with the weights that it starts from
    heads: Sequence[str]  # the paths of its layers that output logits, where they are known
    classes: Sequence[str]  # of the data: the names of its classes, labels or values
    target: Target  # of the data
    loss: LossFunction  # of the recipe: of outputs and targets
    images: torch.Tensor  # a few training images as the network gets them, on the CPU
    device: torch.device
    num_devices: int  # of this process, over which it splits a micro-batch
    is_training: bool  # False where a checkpoint is evaluated


class Task(Protocol):
    """What is learned.

    A batch is the images [n, channels, height, width] as the network gets them, and the targets as the data has them.
    `model` is the network as its strategy wraps it: call it once in `loss`, with one tensor, and use nothing else of
    it. Draw from torch's, NumPy's and Python's global generators, which are seeded for each micro-batch. A task keeps
    no state from one step to the next; buffers of `network.task_layers` do, see `tasks.layers`.

    Two methods are optional. `metrics(sums, num_samples)` returns what is recorded as `val/NAME` for the sums over all
    samples, as numbers by name; without it these are the sums of one number each, divided by the number of samples.
    `fingerprint()` returns digests by name of what the task has read besides the data: a resume checks them.
    """

    def setup(self, setup: TaskSetup) -> None:
        """Prepare for training or evaluation; layers that the task trains itself are added to the network here."""
        ...

    def loss(self, model: nn.Module, batch: Batch) -> Losses:
        """Return the mean losses over the samples of a micro-batch: `loss` is minimised, others are recorded."""
        ...

    def evaluate(self, model: nn.Module, batch: Batch) -> Sums:
        """Return sums over the samples of a batch, `loss` among them, and `outputs` where there is a row for each."""
        ...

    def predict(self, model: nn.Module, images: torch.Tensor) -> torch.Tensor:
        """Return what the task predicts for images, a row for each.

        A bundle calls it of a task that is not set up, made with `task.arguments`.
        """
        ...
