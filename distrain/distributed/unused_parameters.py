"""Finds weights that the loss does not depend on, such as an unused layer or head.

In one process they do not change, because they have no gradient. DistributedDataParallel would wait for their gradients
until it times out, and in a buffer that is summed over the ranks their gradients would be zeros, so that weight decay
would change them. So they are excluded from the reduction.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from distrain.errors import ModelError
from distrain.tensors.preserve_state import preserve_state

MAX_NAMED = 3

log = logging.getLogger(__name__)


def find_unused_parameters(model: nn.Module, example: torch.Tensor) -> list[str]:
    """Return the names of the trainable weights that no output of the network depends on, in training or evaluation.

    `example` is a small input batch; buffers and random number generators are restored afterwards.
    """
    idle = {name for name, weight in model.named_parameters() if weight.requires_grad}
    with preserve_state(model), torch.enable_grad():
        for is_training in (True, False):  # layers that training skips at random run in evaluation
            if idle:
                idle -= _reached(model.train(is_training), example.clone())  # a network may modify it
    return [name for name, _ in model.named_parameters() if name in idle]


@contextmanager
def excluded(model: nn.Module, idle: Sequence[str]) -> Iterator[None]:
    """Exclude the idle weights while a strategy wraps the network in the block, and check them afterwards.

    A backward pass that reaches one raises `ModelError`: the ranks would have different gradients for it.
    """
    weights = {name: model.get_parameter(name) for name in idle}
    for weight in weights.values():
        weight.requires_grad = False
    yield
    for name, weight in weights.items():
        weight.requires_grad = True
        weight.register_post_accumulate_grad_hook(partial(_refuse, name))  # type: ignore[no-untyped-call]
    if idle:
        more = "" if len(idle) <= MAX_NAMED else f" and {len(idle) - MAX_NAMED} more"
        log.info("the loss does not depend on %s%s: not trained", ", ".join(idle[:MAX_NAMED]), more)


def _reached(model: nn.Module, example: torch.Tensor) -> set[str]:
    """Return the weights that have a gradient after a backward pass, even if it is 0."""
    outputs = [out for out in tree_leaves(model(example)) if isinstance(out, torch.Tensor) and out.requires_grad]
    torch.autograd.backward([out.sum() for out in outputs])
    reached = {name for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad(set_to_none=True)
    return reached


def _refuse(name: str, _: torch.Tensor) -> None:
    raise ModelError(
        f"{name} is used in this step, but no output depended on it at the start; train a network that uses other "
        f"weights depending on the data in one process, without train.exact"
    )
