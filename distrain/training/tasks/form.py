"""Says which losses and sums a task returns, and checks them: all ranks must know the same ones."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from distrain.errors import RecipeError
from distrain.messages import joined
from distrain.system.exits import place_of_code
from distrain.training.tasks.protocol import CONFUSION, LOSS, OUTPUTS, Losses, Sums, Task

# What training itself records as `train/NAME`.
_RESERVED = ("lr", "samples_per_s", "mfu", "grad_norm", "skipped_batches")
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class TaskForm:
    """What a task returns, by name: found by a call of it before the first step."""

    losses: tuple[str, ...] = ()  # that are recorded besides `loss`
    sums: Shapes = field(default_factory=lambda: {LOSS: ()})  # of floating-point numbers, `loss` first
    counts: Shapes = field(default_factory=dict)  # of whole numbers
    has_outputs: bool = False  # whether an evaluation also gives a row of outputs for each sample

    def with_sums(self, found: Sums) -> "TaskForm":
        """Return the form with what `evaluate` has returned."""
        names = sorted(found.keys() - {OUTPUTS}, key=lambda name: (name != LOSS, name))
        shapes = {name: (found[name].is_floating_point(), tuple(found[name].shape)) for name in names}
        return TaskForm(
            losses=self.losses,
            sums={name: shape for name, (is_float, shape) in shapes.items() if is_float},
            counts={name: shape for name, (is_float, shape) in shapes.items() if not is_float},
            has_outputs=OUTPUTS in found,
        )


def check_losses(found: object, task: Task, *, name: str) -> Losses:
    """Return what `loss` of the user's own task has returned; raises `RecipeError` where that are not losses."""
    place = place_of_code(task.loss)
    advice = "return a dict of tensors of one number each, the means over the samples, one of them `loss`"
    if not isinstance(found, Mapping):
        raise RecipeError(f"task={name}: loss returns {_kind(found)}{place}; {advice}")
    for key, value in found.items():
        if not (isinstance(value, torch.Tensor) and value.ndim == 0 and value.is_floating_point()):
            raise RecipeError(f"task={name}: loss returns {_kind(value)} as {key!r}{place}; {advice}")
        if key in _RESERVED:
            raise RecipeError(f"task={name}: loss returns {key!r}{place}, which training itself records; rename it")
    if LOSS not in found:
        raise RecipeError(f"task={name}: loss returns {joined(list(map(str, found))) or 'nothing'}{place}; {advice}")
    if torch.is_grad_enabled() and not found[LOSS].requires_grad:
        raise RecipeError(
            f"task={name}: loss returns a `loss` without a gradient{place}; compute it from what the network gives, "
            f"without detach(), item() and no_grad()"
        )
    return dict(found)


def check_sums(found: object, task: Task, *, name: str, num_samples: int) -> Sums:
    """Return what `evaluate` of the user's own task has returned; raises `RecipeError` where that are not sums."""
    place = place_of_code(task.evaluate)
    advice = "return a dict of tensors, the sums over the samples, one of them `loss`"
    if not isinstance(found, Mapping):
        raise RecipeError(f"task={name}: evaluate returns {_kind(found)}{place}; {advice}")
    for key, value in found.items():
        if not isinstance(value, torch.Tensor) or value.is_complex():
            raise RecipeError(f"task={name}: evaluate returns {_kind(value)} as {key!r}{place}; {advice}")
    if LOSS not in found or found[LOSS].ndim != 0 or not found[LOSS].is_floating_point():
        seen = _kind(found[LOSS]) if LOSS in found else joined(list(map(str, found))) or "nothing"
        raise RecipeError(f"task={name}: evaluate returns {seen}{' as loss' if LOSS in found else ''}{place}; {advice}")
    confusion = found.get(CONFUSION)
    if confusion is not None and (confusion.is_floating_point() or confusion.ndim != 2):
        raise RecipeError(
            f"task={name}: evaluate returns {_kind(confusion)} as `confusion`{place}; return whole numbers [classes, "
            f"classes], or name it otherwise"
        )
    outputs = found.get(OUTPUTS)
    if outputs is not None and (outputs.ndim != 2 or len(outputs) != num_samples):
        raise RecipeError(
            f"task={name}: evaluate returns {_kind(outputs)} as `outputs` of {num_samples} samples{place}; return a "
            f"row for each, or name it otherwise"
        )
    return dict(found)


def check_alike(found: TaskForm, expected: TaskForm, task: Task, *, name: str) -> None:
    """Raise `RecipeError` where the user's own task returns other names or shapes than before."""
    if found != expected:
        raise RecipeError(
            f"task={name}: loss and evaluate return other names or shapes than for the first samples"
            f"{place_of_code(task.evaluate)}: {_describe(found)}, not {_describe(expected)}; return the same for "
            f"every batch"
        )


def _describe(form: TaskForm) -> str:
    shapes = {**dict.fromkeys(form.losses, ()), **form.sums, **form.counts}
    return joined([f"{name} {list(shape)}" for name, shape in shapes.items()], last="and")


def _kind(value: object) -> str:
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    return "None" if value is None else f"{type(value).__name__} {value!r:.40}"
