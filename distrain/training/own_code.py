"""Checks what the user's own network and loss return, and whether they may draw random numbers anywhere.

Torch would refuse wrong outputs far from the user's code.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from distrain.config import Recipe
from distrain.config.user_code import is_reference
from distrain.errors import ModelError, RecipeError, UserError
from distrain.messages import counted, first_line
from distrain.runs.consequences import is_secondary
from distrain.runs.user_errors import is_of_the_machine, packages_of
from distrain.system.exits import place_of_code, user_frame
from distrain.tensors.module_state import LossFunction


def with_checks(recipe: Recipe, model: nn.Module, loss_function: LossFunction, *, num_outputs: int) -> LossFunction:
    """Return a loss that checks the outputs of `model`, and its own value, where either is the user's own.

    It raises `ModelError` or `RecipeError`. Where both are distrain's it is `loss_function` itself.
    """
    if not (is_reference(recipe.model.name) or is_reference(recipe.loss.name)):
        return loss_function
    network, loss = f"model.name={recipe.model.name}", f"loss.name={recipe.loss.name}"

    def checked(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        # What is right is recognized here, as each call costs a small network a measurable part of its step.
        if not (_is_trained(logits) and logits.shape == (len(targets), num_outputs)):
            check_outputs(logits, model, name=network, num_samples=len(targets), num_outputs=num_outputs)
        value = loss_function(logits, targets)
        if not (_is_trained(value) and value.ndim == 0):
            check_value(value, loss_function, name=loss, logits=logits)
        return value

    return checked


def _is_trained(tensor: object) -> bool:
    return isinstance(tensor, torch.Tensor) and tensor.requires_grad and tensor.is_floating_point()


def may_draw_anywhere(recipe: Recipe, model: nn.Module) -> bool:
    """Whether a pass may draw random numbers from NumPy's or Python's generators: whether it runs the user's code.

    A network that is put together of torch's own modules draws from torch's generators alone.
    """
    if is_reference(recipe.loss.name) or recipe.task.is_own:
        return True
    return is_reference(recipe.model.name) and any(map(_runs_other_code, model.modules()))


def _runs_other_code(module: nn.Module) -> bool:
    """Whether the pass of a module, without its parts, may run code of another package than torch's networks."""
    if not all(_is_known(kind.__module__) for kind in type(module).__mro__):
        return True
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        return True
    # Such as an activation that a transformer layer was given, or a forward method of this module alone.
    values = [value for value in vars(module).values() if callable(value)]
    return not all(_is_known(getattr(value, "__module__", None) or "") for value in values)


def _is_known(module_name: str) -> bool:
    return module_name == "builtins" or f"{module_name}.".startswith(("torch.nn.", "torch._C.", "torchvision."))


@contextmanager
def refusing(images: torch.Tensor, *, name: str) -> Iterator[None]:
    """Raise `ModelError` where the network `name` does not accept `images` [n, channels, height, width].

    Errors raised by lines of the user's code, which say where they are, and those of the machine are not caught.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) or is_secondary(error) or is_of_the_machine(error):
            raise
        if user_frame(error, packages_of([name])) is not None:
            raise
        remedy = ", or change the network" if is_reference(name) else ""
        raise ModelError(
            f"model.name={name} does not accept images of {'x'.join(map(str, images.shape[1:]))} pixels "
            f"({first_line(error)}); make them what it accepts in augment.train and augment.eval{remedy}"
        ) from error


def check_outputs(
    outputs: object, model: nn.Module, *, num_samples: int, num_outputs: int, name: str = "the network"
) -> torch.Tensor:
    """Return a network's outputs; raises `ModelError` where they are not logits [samples, outputs].

    They must have a gradient where the network computed them with one.
    """
    seen = unlike_logits(outputs, num_samples=num_samples, num_outputs=num_outputs)
    when = " in training" if model.training else ""
    if seen is not None:
        raise ModelError(
            f"{name} gives {seen}{when}{place_of_code(model)}; return a floating-point tensor [samples, {num_outputs}]"
        )
    assert isinstance(outputs, torch.Tensor)
    if torch.is_grad_enabled() and not outputs.requires_grad and any(w.requires_grad for w in model.parameters()):
        raise ModelError(
            f"{name} gives outputs without a gradient{when}{place_of_code(model)}; compute them from its weights, "
            f"without detach() and no_grad()"
        )
    return outputs


def unlike_logits(outputs: object, *, num_samples: int, num_outputs: int) -> str | None:
    """Return what a network gives instead of logits, or None for logits."""
    if not isinstance(outputs, torch.Tensor):
        return "None" if outputs is None else f"a {type(outputs).__name__}"
    if outputs.shape == (num_samples, num_outputs) and outputs.is_floating_point():
        return None
    return f"{_describe(outputs)} for {counted(num_samples, 'sample')}"


def check_value(value: object, function: LossFunction, *, logits: torch.Tensor, name: str = "the loss") -> torch.Tensor:
    """Return a loss; raises `RecipeError` where it is not one number, or has no gradient although `logits` have one."""
    if not (isinstance(value, torch.Tensor) and value.ndim == 0 and value.is_floating_point()):
        seen = _describe(value) if isinstance(value, torch.Tensor) else f"{value!r:.60}"
        raise RecipeError(f"{name} gives {seen}{place_of_code(function)}; return the mean over the samples, one number")
    if logits.requires_grad and not value.requires_grad:
        raise RecipeError(
            f"{name} gives a number without a gradient{place_of_code(function)}; compute it from the logits, without "
            f"detach(), item() and no_grad()"
        )
    return value


def _describe(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
