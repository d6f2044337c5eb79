"""Makes the network of a session: its weights, what of it is frozen, and the options of its parameter groups."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from distrain.config import Model, Recipe
from distrain.data.sources.base import Source
from distrain.distributed.world import World
from distrain.errors import ModelError, WeightsUnreachableError
from distrain.global_rng import seed_generators
from distrain.models.copies import copy_network
from distrain.models.data_dependent_init import initialize
from distrain.models.freezing import UnfreezeSteps, end_steps, freeze
from distrain.models.registry import build_model, head_paths
from distrain.models.weight_sets import StoredWeights
from distrain.rng import Purpose
from distrain.training.probe import check_state
from distrain.training.setup.data import DataSetup, first_images
from distrain.training.stored_weights import read_stored

IF_REACHABLE = "imagenet-if-reachable"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class NetworkSetup:
    """The network on the CPU, bare, and what the recipe says of its weights."""

    model: nn.Module
    heads: Sequence[str]
    unfreeze_steps: UnfreezeSteps  # the step from which on a frozen weight is trained
    end_steps: dict[str, int]  # the step from which on a weight is frozen
    unwrapped_copy: nn.Module | None  # for the loggers; None where the network cannot be copied


def set_up_network(recipe: Recipe, data: DataSetup, world: World, *, is_new: bool) -> NetworkSetup:
    """Make the network, with the weights that it starts from where `is_new`: else a checkpoint replaces them.

    All ranks call it together. Raises a `UserError` where network, weights and data do not go together.
    """
    wants = recipe.model.weights if is_new else None
    model = _build_model(recipe, wants, data.train_source, in_channels=data.num_channels, world=world)
    if wants is None and is_new:
        initialize(model, lambda: first_images(recipe, data.train_source))
    check_state(model, name=f"model.name={recipe.model.name}")
    unwrapped_copy = _copy_for_loggers(recipe, model)
    heads, steps_per_epoch = head_paths(recipe.model, model), data.sampler.steps_per_epoch
    return NetworkSetup(
        model=model,
        heads=heads,
        unfreeze_steps=freeze(recipe.model, model, heads=heads, steps_per_epoch=steps_per_epoch),
        end_steps=end_steps(recipe.model, model, heads=heads, steps_per_epoch=steps_per_epoch),
        unwrapped_copy=unwrapped_copy,
    )


def _build_model(recipe: Recipe, wants: str | None, source: Source, *, in_channels: int, world: World) -> nn.Module:
    config = recipe.model.model_copy(update={"weights": "imagenet" if wants == IF_REACHABLE else wants})
    complaint = None
    try:
        model = _draw_model(recipe, config, source, in_channels=in_channels, world=world)
    except WeightsUnreachableError as error:
        if wants != IF_REACHABLE:
            raise
        complaint = str(error).partition(";")[0]
    if wants != IF_REACHABLE or not world.any_over_ranks(complaint is not None):
        return model
    log.warning("%s: the network starts from random weights", complaint or "another rank could not load the weights")
    return _draw_model(
        recipe, config.model_copy(update={"weights": None}), source, in_channels=in_channels, world=world
    )


def _draw_model(recipe: Recipe, config: Model, source: Source, *, in_channels: int, world: World) -> nn.Module:
    stored, outputs = read_stored(config), recipe.task.outputs(source.classes)
    _compare_classes(config, stored, outputs)
    seed_generators(recipe.train.seed, Purpose.MODEL_INIT)
    with world.rank_zero_first():  # rank 0 downloads missing weights
        return build_model(config, num_classes=len(outputs), in_channels=in_channels, stored=stored)


def _compare_classes(config: Model, stored: StoredWeights | None, classes: Sequence[str]) -> None:
    """Warn where the head of a run or bundle fits but its outputs have other names than here."""
    if stored is None or len(stored.classes) != len(classes) or list(stored.classes) == list(classes):
        return
    kind = "the same classes in another order" if set(stored.classes) == set(classes) else "other classes"
    number = next(i for i, (before, now) in enumerate(zip(stored.classes, classes, strict=True)) if before != now)
    words = f"output {number} was {stored.classes[number]!r} and is {classes[number]!r} here"
    log.warning("model.weights=%s was trained on %s: %s; its head is loaded as it is", config.weights, kind, words)


def _copy_for_loggers(recipe: Recipe, model: nn.Module) -> nn.Module | None:
    """Return a copy in evaluation mode; warn and return None where the network cannot be copied."""
    try:
        return copy_network(model, name=recipe.model.name).eval()
    except ModelError as error:
        if recipe.log.tensorboard:
            log.warning("%s; TensorBoard does not show its graph", error)
        return None
