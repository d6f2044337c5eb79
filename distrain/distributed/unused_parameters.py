"""Finds weights that the loss does not depend on: an unused layer, a head that nothing calls.

One process leaves them as they are: they have no gradient. DistributedDataParallel waits for one of theirs until it
gives up, and a buffer that is summed over the ranks has zeros for them, by which they decay. So they are kept out.
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
    """Return the names of the trainable weights that no answer of the network depends on, in training or evaluation.

    `example` is a small batch as the network gets it; buffers and random numbers are as before afterwards.
    """
    idle = {name for name, weight in model.named_parameters() if weight.requires_grad}
    with preserve_state(model), torch.enable_grad():
        for is_training in (True, False):  # what is skipped at random in training is there in evaluation
            if idle:
                idle -= _reached(model.train(is_training), example.clone())  # a network may write to it
    return [name for name, _ in model.named_parameters() if name in idle]


@contextmanager
def excluded(model: nn.Module, idle: Sequence[str]) -> Iterator[None]:
    """Hide the idle weights from what a strategy makes of the network meanwhile, and guard them from then on.

    The backward pass that reaches one raises `ModelError`: the ranks would not agree on its gradient.
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
        log.info("no loss depends on %s%s: left as they are", ", ".join(idle[:MAX_NAMED]), more)


def _reached(model: nn.Module, example: torch.Tensor) -> set[str]:
    """Return the weights that have a gradient after a backward pass, be it 0."""
    answers = [out for out in tree_leaves(model(example)) if isinstance(out, torch.Tensor) and out.requires_grad]
    torch.autograd.backward([answer.sum() for answer in answers])
    found = {name for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def _refuse(name: str, _: torch.Tensor) -> None:
    raise ModelError(
        f"{name} takes part in this step, and no answer depended on it at the start: a network whose parts come and go "
        f"with the data trains in one process, without train.exact"
    )
