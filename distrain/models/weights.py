"""Owns weights that come from a file: reading it without running code, and putting into a network what fits."""

import logging
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from distrain.errors import ModelError
from distrain.messages import nearest
from distrain.models.heads import fit_channels

log = logging.getLogger(__name__)

Weights = dict[str, torch.Tensor]

# Under what training scripts put a state_dict in a file, next to the epoch and the like.
_WRAPPINGS = ("state_dict", "model_state_dict", "model", "net", "module", "network", "weights")
_WORDS = ("imagenet", "imagenet-if-reachable")  # what model.weights may be besides a file
_PREFIXES = ("module.", "_orig_mod.")  # of DataParallel, and of torch.compile


@dataclass(frozen=True)
class Misfits:
    """The names in which a file and a network differ, each in the order of where it stands."""

    missing: list[str]
    unexpected: list[str]
    misshaped: list[str]


def load_weights(model: nn.Module, file: str, *, head: str | None, is_partial: bool) -> None:
    """Load the weights of a file into `model`, except for a head of another shape, which stays as it is.

    `is_partial` takes whatever fits and logs each name that does not. Raises `ModelError` where the file cannot be read
    as tensors by name, where it does not fit, and where nothing in it fits.
    """
    state = _fit_first_layer(model, read_weights(file))
    expected = model.state_dict()
    misfits = Misfits(
        missing=[key for key in expected if key not in state],
        unexpected=[key for key in state if key not in expected],
        misshaped=[key for key in expected if key in state and state[key].shape != expected[key].shape],
    )
    fitting = {key: state[key] for key in expected if key in state and key not in misfits.misshaped}
    if not fitting:
        raise ModelError(
            f"model.weights={file} does not fit the model: no name and shape is that of one of its weights"
        )
    if is_partial:
        _report(file, misfits, state, expected)
    else:
        _refuse(file, misfits, state, expected, head=head)
    model.load_state_dict({**expected, **fitting})


def read_weights(file: str) -> Weights:
    """Return the tensors of a .pth, .pt or .safetensors file by name, taken out of what they are wrapped in."""
    path = Path(file).expanduser()
    if not path.is_file():
        raise ModelError(f"model.weights={file}: there is no such file{nearest(file, _WORDS, count=1, cutoff=0.7)}")
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except pickle.UnpicklingError:  # torch's own words advise to switch this protection off
        raise ModelError(
            f"model.weights={file} is refused: it is not a file of tensors, or names what could run code; "
            f"save the model's state_dict()"
        ) from None
    except Exception as error:  # noqa: BLE001 - torch, pickle, zip and safetensors each have exceptions of their own
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ModelError(f"model.weights={file} cannot be read as tensors by name: {reason}") from None
    state = _unwrap(state)
    if state is None:
        raise ModelError(f"model.weights={file} does not hold tensors by name; save the model's state_dict()")
    for prefix in _PREFIXES:
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): tensor for key, tensor in state.items()}
    return state


def _unwrap(state: Any) -> Weights | None:
    """Return the tensors by name in what a file holds, or None where there are none."""
    if not isinstance(state, dict):
        return None
    if state and all(isinstance(k, str) and isinstance(tensor, torch.Tensor) for k, tensor in state.items()):
        return dict(state)
    inner = next((state[key] for key in _WRAPPINGS if isinstance(state.get(key), dict)), None)
    return None if inner is None else _unwrap(inner)


def _fit_first_layer(model: nn.Module, state: Weights) -> Weights:
    """Return the weights with those of the first convolution for as many channels as the network's images have."""
    first = next((f"{path}.weight" for path, m in model.named_modules() if isinstance(m, nn.Conv2d)), None)
    if first is None or first not in state:
        return state
    given, wanted = state[first].shape, model.get_parameter(first).shape
    if len(given) != 4 or given[1] == wanted[1] or (given[0], *given[2:]) != (wanted[0], *wanted[2:]):
        return state
    log.info("the first layer's weights are for %d channels, and are made to fit %d", given[1], wanted[1])
    return {**state, first: fit_channels(state[first], wanted[1])}


def _refuse(file: str, misfits: Misfits, state: Weights, expected: Weights, *, head: str | None) -> None:
    """Raise `ModelError` where more than the head, which fine-tuning replaces, does not fit; report a new head."""
    for key in [*misfits.missing, *misfits.misshaped]:
        if key.rpartition(".")[0] != head:
            fault = "missing" if key in misfits.missing else "of another shape"
            raise ModelError(
                f"model.weights={file} does not fit the model: {key} is {fault}; model.partial=true takes what fits"
            )
    if head is not None and (key := f"{head}.weight") in {*misfits.missing, *misfits.misshaped}:
        outputs = len(expected[key])
        given = f"has {len(state[key])} outputs" if key in misfits.misshaped else "is not in the file"
        log.info(
            "model.weights=%s: the head (%s) %s; the new one with %d outputs starts from random weights",
            *(file, head, given, outputs),
        )
    if rest := misfits.unexpected:
        some = f"{', '.join(rest[:3])}{' and others' if len(rest) > 3 else ''}"
        log.warning("model.weights=%s: %d of its tensors have no place in the model: %s", file, len(rest), some)


def _report(file: str, misfits: Misfits, state: Weights, expected: Weights) -> None:
    log.info(
        "model.weights=%s: %d of the model's %d tensors loaded, %d missing, %d unexpected, %d of another shape",
        file,
        len(expected) - len(misfits.missing) - len(misfits.misshaped),
        len(expected),
        len(misfits.missing),
        len(misfits.unexpected),
        len(misfits.misshaped),
    )
    for key in misfits.missing:
        log.info("  missing: %s %s", key, list(expected[key].shape))
    for key in misfits.unexpected:
        log.info("  unexpected: %s %s", key, list(state[key].shape))
    for key in misfits.misshaped:
        log.info("  of another shape: %s %s, wanted %s", key, list(state[key].shape), list(expected[key].shape))
