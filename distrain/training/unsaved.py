"""Finds what a network or a loss changes in training and no checkpoint holds, by passes that are undone."""

import logging
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from distrain.checkpoint.tensors import digest
from distrain.config import Recipe
from distrain.config.user_code import is_reference
from distrain.errors import ModelError
from distrain.global_rng import seed_generators
from distrain.rng import Purpose
from distrain.tensors.attributes import CONTAINERS, DICTS, plain_attributes
from distrain.tensors.module_state import load_extra_state, memory_of, pack, split
from distrain.tensors.plain_values import is_storable
from distrain.tensors.preserve_state import preserve_state
from distrain.training.losses import LossFunction

MAX_NAMED = 3
_DEEPEST = 8  # containers within containers that are looked into

log = logging.getLogger(__name__)

Prints = dict[str, object]  # of everything in a module that is not saved, by its name


def report_unsaved(
    recipe: Recipe,
    model: nn.Module,
    loss_function: LossFunction,
    images: torch.Tensor,
    targets: torch.Tensor,
    *,
    num_classes: int,
) -> list[str]:
    """Return the names of what the user's own network and loss change in training and no checkpoint holds; log them.

    `images` and `targets` are a few samples as the network and the loss get them, on their device. Raises `ModelError`
    as `find_unsaved` does.
    """
    found: list[str] = []
    if is_reference(recipe.model.name):
        others = images.flip(0) * 2 + 1
        name = f"model.name={recipe.model.name}"
        with preserve_state(model):
            model.train()
            found += _log(find_unsaved(model, lambda: model(images), lambda: model(others), name=name), name=name)
    if isinstance(loss_function, nn.Module):
        name, loss = f"loss.name={recipe.loss.name}", loss_function
        logits = torch.zeros(len(targets), num_classes, device=targets.device)
        with preserve_state(loss):
            found += _log(
                find_unsaved(loss, lambda: loss(logits, targets), lambda: loss(logits + 1, targets), name=name),
                name=name,
            )
    return found


def _log(unsaved: list[str], *, name: str) -> list[str]:
    if unsaved:
        more = "" if len(unsaved) <= MAX_NAMED else f" and {len(unsaved) - MAX_NAMED} more"
        log.warning(
            "%s changes %s%s in training, which no checkpoint holds: a resumed run starts over with it and ends in "
            "other bits; register it as a persistent buffer, or return it from get_extra_state",
            *(name, ", ".join(unsaved[:MAX_NAMED]), more),
        )
    return unsaved


def find_unsaved(
    module: nn.Module, first: Callable[[], object], second: Callable[[], object], *, name: str
) -> list[str]:
    """Return the names of the attributes and buffers with which a resumed training would differ.

    `first` and `second` are training passes over other inputs. A resume is tried: both passes, back to the saved state,
    and the first pass again. What is then not as after the first pass depends on more than is saved: for example a
    count, but not a cache. Raises `ModelError`, which calls the module `name`, where a pass changes what is saved into
    what could not be loaded. All else that the passes change is left to the caller to undo, with `preserve_state`.
    Nothing is found where a pass fails: that is reported in training.
    """
    shapes = {key: tensor.shape for key, tensor in split(module)[0].items()}
    resume = _saved_state(module)
    try:
        _run(first)
    except Exception:  # noqa: BLE001 - whatever the user's own code raises
        return []
    after_first = _take_prints(module)
    _check_loadable(module, shapes, name=name)
    try:
        _run(second)
        resume()
        _run(first)
    except Exception:  # noqa: BLE001 - as above
        return []
    again = _take_prints(module)
    return [key for key, seen in again.items() if seen != after_first.get(key)]


def _saved_state(module: nn.Module) -> Callable[[], None]:
    """Return a function that brings back what a checkpoint of this moment would hold, but for the weights."""
    buffers = [
        (part, key, buffer, buffer.clone())
        for part in module.modules()
        for key, buffer in part._buffers.items()
        if buffer is not None and key not in part._non_persistent_buffers_set
    ]
    extra = pack(split(module)[1], owner="the network or loss")

    def resume() -> None:
        with torch.no_grad():
            for part, key, buffer, value in buffers:
                part._buffers[key] = buffer.copy_(value)
        if extra:
            load_extra_state(module, extra)

    return resume


def _run(training_pass: Callable[[], object]) -> None:
    seed_generators(0, Purpose.MODEL_DRAW, 0, 0)
    with torch.enable_grad():
        training_pass()


def _check_loadable(module: nn.Module, shapes: dict[str, torch.Size], *, name: str) -> None:
    live, extra = split(module)
    pack(extra, owner=name)
    now = {key: tensor.shape for key, tensor in live.items()}
    for key in shapes.keys() | now.keys():
        if shapes.get(key) != now.get(key):
            before, after = (list(found[key]) if key in found else "none" for found in (shapes, now))
            raise ModelError(
                f"{name}: a training pass makes {after} of {key}, which was {before}, so that no checkpoint "
                f"of it could be loaded; give it its shape at the start, or return it from get_extra_state"
            )


def _take_prints(module: nn.Module) -> Prints:
    saved = {memory_of(tensor) for tensor in split(module)[0].values()}
    prints: Prints = {}
    for path, part in module.named_modules():
        prefix = f"{path}." if path else ""
        for key in part._non_persistent_buffers_set:
            prints[f"{prefix}{key}"] = _print(part._buffers.get(key), set())
        for key, value in plain_attributes(part):
            prints[f"{prefix}{key}"] = _print(value, saved)
    return prints


def _print(value: Any, saved: set[int], depth: int = 0) -> object:
    """Return what is equal for two values if they are, as far as their kinds are known; `saved` memory is ignored."""
    kind = type(value)
    if value is None or kind in {bool, int, float, complex, str, bytes}:
        return repr(value)
    if isinstance(value, torch.Tensor):
        is_known = is_storable(value) and memory_of(value) not in saved
        return digest({"": value}) if is_known else kind.__name__
    if isinstance(value, np.ndarray | np.generic):
        return kind.__name__ if value.dtype.hasobject else (str(value.dtype), value.shape, value.tobytes())
    if isinstance(value, torch.Generator):
        return digest({"": value.get_state()})
    if isinstance(value, np.random.Generator):
        return repr(value.bit_generator.state)
    if isinstance(value, np.random.RandomState):
        return repr(value.get_state(legacy=False))
    if isinstance(value, random.Random):
        return hash(value.getstate())
    if depth == _DEEPEST or kind not in {*CONTAINERS, tuple, frozenset}:
        return kind.__name__
    if kind in DICTS:
        return [(repr(key), _print(item, saved, depth + 1)) for key, item in value.items()]
    items = [_print(item, saved, depth + 1) for item in value]
    return sorted(map(repr, items)) if kind in {set, frozenset} else items
