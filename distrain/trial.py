"""Owns passes through a network that leave it as it was, and what the first of them says of images and outputs."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from distrain.attributes import kept_attributes
from distrain.errors import ModelError
from distrain.module_state import Tensors, as_stateful, kept_buffers, load_extra_state, pack, split, unpack
from distrain.references import is_reference


@contextmanager
def undisturbed(owner: object) -> Iterator[None]:
    """Give back, after passes in any mode, all that they have changed in a network or a loss, and torch's draws.

    These are modes, buffers, extra state and plain attributes; of what is no module, its state, if it has one.
    """
    module = owner if isinstance(owner, nn.Module) else nn.Module()
    modes = [(part, part.training) for part in module.modules()]
    extra = _pack_extra(owner, name="the network or loss")
    may_search = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False  # no search for the fastest kernels of a batch that never comes again
    try:
        gpus = {weight.device.index for weight in module.parameters() if weight.is_cuda}
        with kept_attributes(module), kept_buffers(module), torch.random.fork_rng(devices=gpus):
            yield
    finally:
        torch.backends.cudnn.benchmark = may_search
        for part, was_training in modes:
            part.training = was_training
        if extra:
            _load_extra(owner, extra)


def check_state(owner: object, *, name: str) -> None:
    """Raise `ModelError`, which calls it `name`, where a network or loss has extra state that no resume could restore.

    It cannot be stored, or is not taken back. What has no extra state passes.
    """
    packed, stateful = _pack_extra(owner, name=name), as_stateful(owner)
    if not packed or stateful is None:
        return
    state = stateful.state_dict()
    state.update(unpack(packed))
    try:
        stateful.load_state_dict(state)
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ModelError(
            f"{name} does not take back the state that it gives ({reason[:200]}); define set_extra_state beside "
            f"get_extra_state, so that a resume can restore it"
        ) from error


def _pack_extra(owner: object, *, name: str) -> Tensors:
    """Return what a module has besides weights and buffers, or all that another object gives as its state."""
    if isinstance(owner, nn.Module):
        return pack(split(owner)[1], owner=name)
    stateful = as_stateful(owner)
    return {} if stateful is None else pack(stateful.state_dict(), owner=name)


def _load_extra(owner: object, packed: Tensors) -> None:
    if isinstance(owner, nn.Module):
        load_extra_state(owner, packed)
    elif (stateful := as_stateful(owner)) is not None:
        stateful.load_state_dict(unpack(packed))


def check_outputs(model: nn.Module, images: torch.Tensor, *, name: str, num_outputs: int) -> None:
    """Raise `ModelError` where a network does not take `images`, or does not give `num_outputs` numbers for each.

    `images` float32 [n, channels, height, width] are some as the network gets them in evaluation, on its device. What
    the user's own network raises is not translated.
    """
    try:
        with undisturbed(model), torch.no_grad():
            outputs = model.eval()(images)
    except (ModelError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if is_reference(name):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise ModelError(
            f"model.name={name} does not take images of {_by(images.shape[1:])} ({reason}); make them "
            f"what it takes in augment.train and augment.eval"
        ) from error
    if not isinstance(outputs, torch.Tensor):
        seen = f"a {type(outputs).__name__}"
    elif outputs.shape != (len(images), num_outputs) or not outputs.is_floating_point():
        seen = f"{str(outputs.dtype).removeprefix('torch.')} {list(outputs.shape)} for {len(images)} samples"
    else:
        return
    raise ModelError(f"model.name={name} gives {seen}; return a floating-point tensor [samples, {num_outputs}]")


def _by(shape: torch.Size) -> str:
    return "x".join(map(str, shape))
