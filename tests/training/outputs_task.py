"""A task that measures what it is given as the outputs of a network."""

from collections.abc import Sequence

import torch
from torch import nn

from distrain.config import Loss
from distrain.config.load import load_recipe
from distrain.config.metrics import Target
from distrain.distributed.world import World
from distrain.training.losses import build_loss
from distrain.training.tasks.build import TaskCalls, bind, build_task
from distrain.training.tasks.form import TaskForm
from distrain.training.tasks.protocol import TaskSetup

LOSSES: dict[Target, str] = {"class": "cross_entropy", "labels": "bce", "values": "mse"}


def build_outputs_task(world: World, target: Target, outputs: torch.Tensor, classes: Sequence[str]) -> TaskCalls:
    """Return the calls of the classification of samples whose images are the `outputs` [n, classes]."""
    setup = TaskSetup(
        recipe=load_recipe("digits", overrides=[]),
        network=nn.Identity(),
        heads=[],
        classes=classes,
        target=target,
        loss=build_loss(Loss(name=LOSSES[target]), num_classes=len(classes), target=target, device=world.device),
        images=outputs[:1],
        device=world.device,
        num_devices=1,
        is_training=False,
    )
    return bind(build_task(setup), TaskForm(has_outputs=True), setup)
