"""Sets up the task of a session, and tries it with the first samples."""

import torch
from torch import nn

from distrain.config import Recipe
from distrain.data.sources.base import Batch
from distrain.distributed.world import World
from distrain.training.device.precision import Precision
from distrain.training.setup.data import DataSetup
from distrain.training.setup.loss import LossSetup
from distrain.training.setup.network import NetworkSetup
from distrain.training.single_samples import find_in_evaluation, find_in_training
from distrain.training.tasks.build import KNOWN_FORMS
from distrain.training.tasks.form import TaskForm
from distrain.training.tasks.probe import check_single_sample, find_form, with_sums
from distrain.training.tasks.protocol import Task, TaskSetup


def describe_task(recipe: Recipe, data: DataSetup, loss: LossSetup, network: NetworkSetup, world: World) -> TaskSetup:
    """Return what the task of a training is set up with."""
    return TaskSetup(
        recipe=recipe,
        network=network.model,
        heads=network.heads,
        classes=data.train_source.classes,
        target=data.train_source.target,
        loss=loss.function,
        images=data.sample_images.cpu(),
        device=world.device,
        num_devices=world.num_devices,
        is_training=True,
    )


def try_task(
    task: Task, recipe: Recipe, model: nn.Module, data: DataSetup, precision: Precision, world: World
) -> TaskForm:
    """Return what a task returns, by calls with the first samples, which leave no trace; `model` is on the device.

    Raises a `UserError` where it cannot train or evaluate, with batch sizes as they will occur. Tasks whose form is
    known are not called: the network has been tried with these sizes.
    """
    if (known := KNOWN_FORMS.get(type(task))) is not None:
        return known
    largest = max(max(global_batch.sizes) for global_batch in data.sampler.global_batches)
    with torch.random.fork_rng(devices=[]):
        train = data.prepare(*_head(data.first, largest, world), step=0, index=0)
    images, targets = _head(data.first_val, len(data.sources["val"]), world)
    val = data.normalize(images), targets
    form = find_form(task, recipe, model, precision, train=(train[0].clone(), train[1]))
    form = with_sums(form, task, recipe, model, precision, batch=(val[0].clone(), val[1]))
    is_shared = recipe.parallel.sync_batchnorm and not recipe.train.exact  # statistics over the samples of all GPUs
    alone = None if is_shared else find_in_training(recipe, data.sampler, num_devices=world.num_devices)
    for single, batch, is_training in (
        (alone, train, True),
        (find_in_evaluation(recipe, num_samples=len(data.sources["val"])), val, False),
    ):
        if single is not None:
            sample = batch[0][:1].clone(), batch[1][:1]  # a network may modify its input
            with precision.autocast():
                check_single_sample(task, model, sample, single, name=recipe.model.name, is_training=is_training)
    return form


def _head(batch: Batch, count: int, world: World) -> Batch:
    images, targets = batch
    return images[:count].to(world.device), targets[:count].to(world.device)
