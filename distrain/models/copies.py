"""Copies networks, including those with tensors that `copy.deepcopy` refuses."""

import copy
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from distrain.errors import ModelError
from distrain.messages import first_line


def copy_network(model: nn.Module, *, name: str) -> nn.Module:
    """Return a deep copy of a network; `name` is its name in the recipe, for the message.

    A computed tensor that a module keeps, as with `torch.nn.utils.weight_norm` and `torch.nn.utils.prune`, is copied
    without its history. Raises `ModelError` where the network contains an object that cannot be copied, such as a lock.
    """
    try:
        with _CopyingComputedTensors():
            return copy.deepcopy(model)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # an object that cannot be copied may raise anything
        reason = first_line(error)
        raise ModelError(f"model.name={name} cannot be copied: {reason}") from error


class _CopyingComputedTensors(TorchFunctionMode):
    """Lets `copy.deepcopy` copy tensors that are results of a computation."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function is torch.Tensor.__deepcopy__ and not args[0].is_leaf:
            tensor, memo = args
            return memo.setdefault(id(tensor), tensor.detach().clone())
        return function(*args, **(kwargs or {}))
