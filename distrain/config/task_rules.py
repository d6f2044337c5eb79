"""Checks that the other sections of a recipe go with its task."""

from collections.abc import Iterator

from distrain.config.compute import Compute
from distrain.config.data import Augment, Data
from distrain.config.model import Loss
from distrain.config.outputs import Eval
from distrain.config.task import CLASSIFICATION, DISTILLATION, SEGMENTATION, SELF_SUPERVISED, VIEWS, Task
from distrain.config.training import Train
from distrain.config.user_code import is_reference


def find_contradiction(
    task: Task, *, data: Data, augment: Augment, loss: Loss, train: Train, compute: Compute, evaluation: Eval
) -> str | None:
    """Return what does not go with the task, as a sentence; None where everything does."""
    rules = {
        DISTILLATION: lambda: _distillation(task, compute),
        SEGMENTATION: lambda: _segmentation(data, loss),
        SELF_SUPERVISED: lambda: _self_supervised(data, augment, loss, train),
    }
    faults: list[str] = [*rules[task.name]()] if task.name in rules else []
    if data.target == "mask":
        faults += _masks(task, data, augment)
    if task.name in {SEGMENTATION, SELF_SUPERVISED} or data.target == "mask":
        faults += _no_views(task, evaluation)
    if task.name not in {CLASSIFICATION, DISTILLATION} and evaluation.own_metrics:
        faults.append(
            f"eval.metrics={evaluation.own_metrics[0].name} measures a row of outputs for each sample, which "
            f"task={task.name} need not have; remove it"
        )
    return next(iter(faults), None)


def _distillation(task: Task, compute: Compute) -> Iterator[str]:
    if task.feature_weight and compute.compile != "none":
        yield (
            f"task.feature_weight takes features out of the network, which compute.compile={compute.compile} does not "
            f"allow; set one of the two to null or none"
        )


def _segmentation(data: Data, loss: Loss) -> Iterator[str]:
    if data.target != "mask":
        yield f"task=segmentation needs masks, and data.target is {data.target}; --set data.target=mask"
    if loss.name != "cross_entropy" and not is_reference(loss.name):
        yield f"loss.name={loss.name} is not for masks; use cross_entropy, or your own as package.module:function"
    if loss.class_weights == "balanced":
        yield "loss.class_weights=balanced counts samples of classes, and masks have many; give numbers"


def _self_supervised(data: Data, augment: Augment, loss: Loss, train: Train) -> Iterator[str]:
    if data.target != "class":
        yield f"task=self-supervised is measured by classes, and data.target is {data.target}; use data with classes"
    if data.repeats != VIEWS:
        yield (
            f"task=self-supervised compares {VIEWS} views of each image, and data.repeats is {data.repeats}; "
            f"--set data.repeats={VIEWS}"
        )
    for key, value in (("data.batch_size", data.batch_size), ("train.micro_batch_size", train.micro_batch_size)):
        if isinstance(value, int) and (value % VIEWS or value < 2 * VIEWS):
            yield f"{key}={value}: task=self-supervised needs an even number of samples, {2 * VIEWS} or more"
    if train.micro_batch_size == "auto":
        yield "train.micro_batch_size=auto: with task=self-supervised it affects the result; give a number"
    if augment.is_mixed:
        yield "augment.mixup and augment.cutmix mix classes, and task=self-supervised has none; remove them"
    if loss != Loss():
        yield f"loss.name={loss.name}: task=self-supervised has a loss of its own; remove the section loss"


def _masks(task: Task, data: Data, augment: Augment) -> Iterator[str]:
    if task.name != SEGMENTATION and not task.is_own:
        yield f"data.target=mask is for task=segmentation, and task.name is {task.name}"
    if augment.sizes is not None:
        yield "augment.sizes resizes images alone, and the data has masks; resize both in augment.train"
    if data.more:
        yield "data.more adds samples to classes by name, and the data has masks; remove it"


def _no_views(task: Task, evaluation: Eval) -> Iterator[str]:
    for key, value in (("flips", evaluation.flips), ("shift", evaluation.shift)):
        if value:
            yield f"eval.{key} averages a row of outputs over views, which task={task.name} does not have; remove it"
