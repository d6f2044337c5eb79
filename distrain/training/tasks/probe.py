"""Calls a task with a few samples before the first step, to learn what it returns and whether it can."""

import torch
from torch import nn

from distrain.config import Recipe
from distrain.data.sources.base import Batch
from distrain.errors import ModelError, RecipeError, UserError
from distrain.messages import first_line
from distrain.tensors.preserve_state import preserve_state
from distrain.training.device.precision import Precision
from distrain.training.own_code import refusing
from distrain.training.single_samples import SingleSample
from distrain.training.tasks.form import TaskForm, check_losses, check_sums
from distrain.training.tasks.protocol import LOSS, Task


class Refusing(nn.Module):
    """A network whose errors say, in one sentence, that it does not accept the images."""

    def __init__(self, network: nn.Module, *, name: str) -> None:
        super().__init__()
        self.network = network
        self._name = name

    def forward(self, images: torch.Tensor) -> object:
        """Return what the network gives for the images."""
        with refusing(images, name=self._name):
            return self.network(images)


def find_form(task: Task, recipe: Recipe, model: nn.Module, precision: Precision, *, train: Batch) -> TaskForm:
    """Return the losses of a task by a call of it; raises a `UserError` where it gives none, or none that is finite."""
    with preserve_state(model), precision.autocast():
        losses = task.loss(Refusing(model, name=recipe.model.name).train(), train)
        if recipe.task.is_own:
            losses = check_losses(losses, task, name=recipe.task.name)
            if not losses[LOSS].isfinite():
                raise RecipeError(
                    f"task={recipe.task.name}: the loss of the first samples is {losses[LOSS].item()}; return a finite "
                    f"number"
                )
    return TaskForm(losses=tuple(name for name in losses if name != LOSS))


@torch.no_grad()
def with_sums(
    form: TaskForm, task: Task, recipe: Recipe, model: nn.Module, precision: Precision, *, batch: Batch
) -> TaskForm:
    """Return a form with the sums of a task, by a call of it; raises a `UserError` where it gives none."""
    with preserve_state(model), precision.autocast():
        found = task.evaluate(Refusing(model, name=recipe.model.name).eval(), batch)
        if recipe.task.is_own:
            found = check_sums(found, task, name=recipe.task.name, num_samples=len(batch[1]))
    return form.with_sums(found)


def check_single_sample(
    task: Task, model: nn.Module, sample: Batch, single: SingleSample, *, name: str, is_training: bool
) -> None:
    """Raise `ModelError` where a task that accepts several samples does not accept one, as with BatchNorm."""
    call = task.loss if is_training else task.evaluate
    try:
        with preserve_state(model), torch.set_grad_enabled(is_training):
            call(model.train(is_training), sample)
    except (UserError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise ModelError(
            f"model.name={name} does not accept a batch of a single sample{' in training' if is_training else ''} "
            f"({first_line(error)}), and {single.where}; {single.remedy}"
        ) from error
