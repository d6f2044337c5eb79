"""Builds the loss with its class weights, and the metrics of the evaluations."""

from dataclasses import dataclass

import torch

from distrain.config import Recipe
from distrain.data.sources.class_counts import class_counts
from distrain.distributed.world import World
from distrain.training.class_weights import resolve_class_weights
from distrain.training.losses import LossFunction, build_loss
from distrain.training.metrics.selection import ChosenMetrics, choose_metrics
from distrain.training.probe import check_state
from distrain.training.setup.data import DataSetup


@dataclass(frozen=True)
class LossSetup:
    """The loss and the metrics."""

    function: LossFunction
    class_weights: torch.Tensor | None  # float32 [classes]
    metrics: ChosenMetrics


def set_up_loss(recipe: Recipe, data: DataSetup, world: World) -> LossSetup:
    """Make the loss on the device; raises a `UserError` where it does not go with the targets of the data."""
    source = data.train_source
    class_weights = resolve_class_weights(
        recipe.loss.class_weights, classes=source.classes, counts=lambda: class_counts(source)
    )
    function = build_loss(
        recipe.loss,
        num_classes=data.num_classes,
        target=source.target,
        device=world.device,
        class_weights=class_weights,
    )
    check_state(function, name=f"loss.name={recipe.loss.name}")
    measured = recipe.task.measures(source.target)
    metrics = choose_metrics(recipe.eval, target=measured, classes=source.classes, is_own=recipe.task.is_own)
    return LossSetup(function, class_weights, metrics)
