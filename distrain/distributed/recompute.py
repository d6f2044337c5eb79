"""Computes the activations of blocks again in the backward pass, so that they need no memory until then.

Chen et al., "Training deep nets with sublinear memory cost", 2016; torch calls it activation checkpointing. A block is
run twice, so all that it changes in a pass must change once, and all that it draws must be drawn equally: it runs again
on copies of its buffers from before the first pass, with the generators' states of that time.
"""

import logging
import random
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import CheckpointError, checkpoint

from distrain.config import Recipe
from distrain.config.user_code import is_reference
from distrain.distributed.world import World
from distrain.errors import ModelError, RecipeError
from distrain.messages import counted
from distrain.models.blocks import find_recomputed
from distrain.tensors.module_state import Tensors, buffer_slots, pack, split
from distrain.tensors.preserve_state import preserve_state

log = logging.getLogger(__name__)

KEY = "compute.recompute"


def recompute_blocks(recipe: Recipe, network: nn.Module, world: World, images: torch.Tensor) -> None:
    """Have the blocks of a network run again in each backward pass, in place, where the recipe requests it.

    Passes over `images`, a few samples on the network's device, compare it with the plain network, to the bit. Raises
    a `UserError` where it computes something else, has no blocks, or the rest of the recipe does not allow it.
    """
    if not recipe.compute.recompute:
        return
    if world.num_devices > 1:
        raise RecipeError(
            f"{KEY} needs one process per GPU, and one has {world.num_devices}; give --gpus without "
            f"parallel.strategy=dp"
        )
    plain = _train_twice(network, images)
    blocks = turn_on(recipe, network)
    try:
        fault = _find_difference(plain, _train_twice(network, images))
    except CheckpointError as error:
        fault = str(error).strip().partition("\n")[0]
    if fault is not None:
        blocks.turn_off()
        if _find_difference(plain, _train_twice(network, images)) is None:  # else its kernels are not deterministic
            raise ModelError(
                f"{KEY}=true changes what model.name={recipe.model.name} computes ({fault}): what a block changes in "
                f"its pass must be in buffers, and what it draws from global generators; remove it"
            )
        blocks.turn_on()
    log.info("%s: %s run again in the backward pass", KEY, blocks)


def turn_on(recipe: Recipe, network: nn.Module) -> "Blocks":
    """Have the blocks of a network run again, without comparing; raises `ModelError` where it has none."""
    blocks = Blocks(network, name=recipe.model.name)
    blocks.turn_on()
    return blocks


class Blocks:
    """What runs again of a network: what timm's own method chooses where it has one, else its repeated blocks."""

    def __init__(self, network: nn.Module, *, name: str) -> None:
        self._network = network
        self._is_timm = _has_own_method(network)
        self._draws_anywhere = is_reference(name)
        self._forwards: list[tuple[nn.Module, Callable[..., Any] | None]] = []  # the instance's own before, if any
        self._blocks: Sequence[nn.Module] = [] if self._is_timm else find_recomputed(network)
        if not self._is_timm and not self._blocks:
            raise ModelError(f"{KEY} finds no repeated blocks in model.name={name}; remove it")

    def __str__(self) -> str:
        if self._is_timm:
            return "the blocks that timm chooses"
        kinds = ", ".join(sorted({type(block).__name__ for block in self._blocks}))
        return f"{counted(len(self._blocks), 'block')} ({kinds})"

    def turn_on(self) -> None:
        """Replace the `forward` of parts: their hooks, such as FSDP's, and the names of their weights stay."""
        if self._is_timm:
            self._network.set_grad_checkpointing(True)  # type: ignore[operator]
            parts = [part for part in self._network.modules() if any(True for _ in part.buffers(recurse=False))]
            wrap: Callable[[nn.Module], Callable[..., Any]] = _with_buffers_unchanged
        else:
            parts, wrap = list(self._blocks), self._checkpointed
        for part in parts:
            self._forwards.append((part, vars(part).get("forward")))
            part.forward = wrap(part)

    def turn_off(self) -> None:
        """Restore the network."""
        if self._is_timm:
            self._network.set_grad_checkpointing(enable=False)  # type: ignore[operator]
        while self._forwards:
            part, before = self._forwards.pop()
            if before is None:
                del part.forward
            else:
                part.forward = before

    def _checkpointed(self, block: nn.Module) -> Callable[..., Any]:
        inner, slots, draws_anywhere = block.forward, buffer_slots(block), self._draws_anywhere

        def again() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
            return nullcontext(), _SecondPass(slots, draws_anywhere=draws_anywhere)

        def forward(*args: Any, **kwargs: Any) -> Any:  # blocks may have any signature
            if not torch.is_grad_enabled():
                return inner(*args, **kwargs)
            return checkpoint(inner, *args, use_reentrant=False, context_fn=again, **kwargs)

        return forward


class _SecondPass:
    """Runs a block as its first pass began: on copies of the buffers, and with NumPy's and Python's generators."""

    def __init__(self, slots: list[tuple[nn.Module, str]], *, draws_anywhere: bool) -> None:
        self._copies = [(part, name, _copy(part._buffers[name])) for part, name in slots]
        self._states = (np.random.get_state(), random.getstate()) if draws_anywhere else None

    def __enter__(self) -> None:
        self._current = [(part, name, part._buffers[name]) for part, name, _ in self._copies]
        for part, name, copied in self._copies:
            part._buffers[name] = copied
        if self._states is not None:
            self._later = np.random.get_state(), random.getstate()
            np.random.set_state(self._states[0])
            random.setstate(self._states[1])

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for part, name, buffer in self._current:
            part._buffers[name] = buffer
        if self._states is not None:
            np.random.set_state(self._later[0])
            random.setstate(self._later[1])


def _copy(buffer: torch.Tensor | None) -> torch.Tensor | None:
    return None if buffer is None else buffer.detach().clone()


def _with_buffers_unchanged(part: nn.Module) -> Callable[..., Any]:
    """Return the forward pass of a layer that changes its buffers, such as BatchNorm's, in the first pass only."""
    inner, slots = part.forward, [(part, name) for name, _ in part.named_buffers(recurse=False)]

    def forward(*args: Any, **kwargs: Any) -> Any:
        if torch._C._current_graph_task_id() == -1:  # no backward pass is running
            return inner(*args, **kwargs)
        with _SecondPass(slots, draws_anywhere=False):
            return inner(*args, **kwargs)

    return forward


def _has_own_method(network: nn.Module) -> bool:
    """Whether a network is timm's and knows what to run again; timm's earlier versions use reentrant passes."""
    if not type(network).__module__.startswith("timm.") or find_spec("timm.layers.config") is None:
        return False
    from timm.layers import config

    is_reentrant = getattr(config, "use_reentrant_ckpt", lambda: True)
    own_method: Any = getattr(network, "set_grad_checkpointing", None)
    if is_reentrant() or own_method is None:
        return False
    try:
        own_method(enable=True)
    except (AssertionError, TypeError):  # those that do not support it assert that it is off
        return False
    own_method(enable=False)
    return True


def _train_twice(network: nn.Module, images: torch.Tensor) -> Tensors:
    """Return the gradients, and the buffers and extra state after two training passes, which are undone.

    The second one shows what else the first has changed.
    """
    with preserve_state(network), torch.enable_grad():
        network.train()
        torch.manual_seed(0)
        np.random.seed(0)
        random.seed(0)
        for _ in range(2):
            outputs = [out for out in tree_leaves(network(images.clone())) if isinstance(out, torch.Tensor)]
            torch.autograd.backward([out.float().square().sum() for out in outputs if out.requires_grad])
        found = {f"the gradient of {n}": p.grad for n, p in network.named_parameters() if p.grad is not None}
        found |= {f"buffer {name}": buffer.clone() for name, buffer in network.named_buffers()}
        found |= {f"state {name}": value for name, value in pack(split(network)[1], owner="the network").items()}
        network.zero_grad(set_to_none=True)
    return found


def _find_difference(one: Tensors, other: Tensors) -> str | None:
    """Return the name of the first tensor that differs; None where all are equal."""
    for name in {**one, **other}:
        if name not in one or name not in other or not torch.equal(_bits(one[name]), _bits(other[name])):
            return f"{name} differs"
    return None


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """Return the bytes of a tensor, in which NaN equals itself."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)
