"""Builds the task of a recipe, and the calls of it that training and evaluation make."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import nn

from distrain.config import Task as TaskConfig
from distrain.config.task import CLASSIFICATION, DISTILLATION, SEGMENTATION, SELF_SUPERVISED
from distrain.config.user_code import find_refusal, load_reference
from distrain.data.sources.base import Batch
from distrain.errors import RecipeError
from distrain.global_rng import seed_generators
from distrain.messages import joined
from distrain.rng import Purpose
from distrain.system.exits import place_of_code
from distrain.training.tasks.classification import Classification
from distrain.training.tasks.distillation import Distillation
from distrain.training.tasks.form import TaskForm, check_alike, check_losses, check_sums
from distrain.training.tasks.protocol import LOSS, Losses, Sums, Task, TaskLosses, TaskSetup, TaskSums
from distrain.training.tasks.segmentation import Segmentation
from distrain.training.tasks.self_supervised import SelfSupervised

TASKS: dict[str, Callable[[], Task]] = {
    CLASSIFICATION: Classification,
    DISTILLATION: Distillation,
    SEGMENTATION: Segmentation,
    SELF_SUPERVISED: SelfSupervised,
}
KNOWN_FORMS: dict[type, TaskForm] = {Classification: TaskForm(has_outputs=True)}
_METHODS = ("setup", "loss", "evaluate", "predict")


@dataclass(frozen=True)
class TaskCalls:
    """The calls of a task that a session makes, with checks of what the user's own returns."""

    loss: TaskLosses
    evaluate: TaskSums
    metrics: Callable[[Sums, int], dict[str, float]]
    form: TaskForm
    fingerprint: dict[str, str]
    modules: tuple[nn.Module, ...] = ()  # that are in training or evaluation mode with the network


def build_task(setup: TaskSetup) -> Task:
    """Return the task of a recipe, set up; its draws are seeded, the same on every rank.

    Raises `RecipeError` for a task of the user's own that is not one.
    """
    config = setup.recipe.task
    task = _load_own(config) if config.is_own else TASKS[config.name]()
    seed_generators(setup.recipe.train.seed, Purpose.MODEL_INIT, 1)
    task.setup(setup)
    if isinstance(task, nn.Module):
        if trained := next((weight for weight, value in task.named_parameters() if value.requires_grad), None):
            raise RecipeError(
                f"task={config.name} has a trainable weight, {trained}, which nothing would train; add its layer to "
                f"the network in setup: network.task_layers = ..."
            )
        task.to(setup.device)
    return task


def bind(task: Task, form: TaskForm, setup: TaskSetup) -> TaskCalls:
    """Return the calls of a task that returns what `form` says."""
    config = setup.recipe.task
    loss: TaskLosses = losses_of(task, config)
    evaluate: TaskSums = task.evaluate
    if config.is_own:
        loss, evaluate = (
            _with_same_names(loss, task, form, name=config.name),
            _checked_sums(task, form, name=config.name),
        )
    fingerprint: Callable[[], dict[str, str]] = getattr(task, "fingerprint", dict)  # optional
    return TaskCalls(
        loss=loss,
        evaluate=evaluate,
        metrics=getattr(task, "metrics", means_of_sums),  # optional
        form=form,
        fingerprint=fingerprint(),
        modules=tuple(part for part in (setup.loss, task) if isinstance(part, nn.Module)),
    )


def losses_of(task: Task, config: TaskConfig) -> TaskLosses:
    """Return the `loss` of a task, with checks of what it returns where it is the user's own."""
    if not config.is_own:
        return task.loss
    return lambda model, batch: check_losses(task.loss(model, batch), task, name=config.name)


def means_of_sums(sums: Sums, num_samples: int) -> dict[str, float]:
    """Return the mean over the samples of each sum that is one number."""
    return {name: float(value) / num_samples for name, value in sums.items() if value.ndim == 0}


def _load_own(config: TaskConfig) -> Task:
    factory = load_reference(config.name, key="task")
    made = factory
    if isinstance(factory, type) or not hasattr(factory, "loss"):
        if not callable(factory):
            raise RecipeError(
                f"task={config.name} is {factory!r:.60}; name a class with {joined(_METHODS, last='and')}"
            )
        if (refusal := find_refusal(factory, config.arguments)) is not None:
            raise RecipeError(f"task={config.name} with task.arguments: {refusal}")
        made = factory(**config.arguments)
    if missing := [name for name in _METHODS if not callable(getattr(made, name, None))]:
        place = place_of_code(type(made))
        raise RecipeError(
            f"task={config.name} has no {joined(missing, last='and')}{place}; a task has the methods "
            f"{joined(_METHODS, last='and')}"
        )
    task: Task = made
    return task


def _with_same_names(losses: TaskLosses, task: Task, form: TaskForm, *, name: str) -> TaskLosses:
    names = {LOSS, *form.losses}

    def loss(model: nn.Module, batch: Batch) -> Losses:
        found = losses(model, batch)
        if found.keys() != names:
            others = tuple(key for key in found if key != LOSS)
            check_alike(replace(form, losses=others), form, task, name=name)
        return found

    return loss


def _checked_sums(task: Task, form: TaskForm, *, name: str) -> TaskSums:
    def evaluate(model: nn.Module, batch: Batch) -> Sums:
        found = check_sums(task.evaluate(model, batch), task, name=name, num_samples=len(batch[1]))
        check_alike(form.with_sums(found), form, task, name=name)
        return found

    return evaluate
