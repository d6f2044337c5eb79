"""Loads weights from a file or a checkpoint into a network, and reports what was loaded."""

import difflib
import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from distrain.config.parameter_patterns import prefixes
from distrain.errors import ModelError
from distrain.messages import counted, joined
from distrain.models.heads import fit_channels
from distrain.models.weight_files import read_content
from distrain.models.weight_sets import Choice, Shapes, StoredWeights, Weights, choose, find_entries
from distrain.tensors.module_state import is_part_of, unpack, with_versions

log = logging.getLogger(__name__)

ENTRY_KEY = "model.weights_entry"
MAX_GROUPS = 6  # of names per line
MAX_NAMES = 3  # of tensors that are not grouped by their layers
_COUNTER = "num_batches_tracked"  # of BatchNorm; missing in files older than torch 0.4.1


@dataclass(frozen=True)
class Mismatches:
    """The names in which a set of weights and a network differ, in the order of the one that has them."""

    missing: list[str]  # in the file
    unexpected: list[str]  # by the network
    misshaped: list[str]

    @property
    def initialised(self) -> list[str]:
        """The network's tensors that keep their initial values."""
        return [*self.missing, *self.misshaped]


def load_weights(
    model: nn.Module,
    reference: str,
    *,
    stored: StoredWeights | None,
    entry: str | None,
    heads: Sequence[str],
    num_classes: int,
    is_partial: bool,
) -> None:
    """Load weights into `model`, except into heads of another shape, which are not changed, and log a summary.

    `stored` is the content of `reference`, None where that is a file to read. `entry` chooses among several sets of
    weights, `heads` are the paths of the heads, which have `num_classes` outputs. `is_partial` loads all tensors that
    fit. Raises `ModelError` where the file cannot be read as tensors by name, and where it does not fit.
    """
    title = f"model.weights={reference}"
    if stored is None:
        stored = find_entries(read_content(Path(reference).expanduser(), title=title))
    elif stored.network:
        title += f" of {stored.network}"
    state = model.state_dict()
    expected = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
    choice = choose(stored, shapes_of(expected), wanted=entry, title=title, key=ENTRY_KEY)
    tensors = {**choice.used.tensors, **_shared(expected, choice.used.tensors)}
    packed = {name: tensor for name, tensor in tensors.items() if is_part_of(name, state.keys() - expected.keys())}
    tensors = {name: tensor for name, tensor in tensors.items() if name not in packed}
    tensors = fit_first_layer(model, tensors)
    mismatches = find_mismatches(tensors, shapes_of(expected))
    fitting = {n: tensors[n] for n in expected if n in tensors and n not in mismatches.misshaped}
    if not fitting:
        raise ModelError(f"{title} does not fit the model: no tensor has the name and shape of one of its weights")
    if not is_partial and (
        bad := describe_mismatch(mismatches, tensors, expected, heads=heads, num_classes=num_classes)
    ):
        raise ModelError(f"{title} does not fit the model: {bad}; model.partial=true loads what fits")
    _report(f"model.weights={reference}{stored.origin}", choice, mismatches, tensors, expected, heads=heads)
    loaded = {**state, **fitting, **unpack(packed)}  # `packed` are entries of a module's state that are not tensors
    model.load_state_dict(with_versions(loaded, model))


def shapes_of(tensors: Weights) -> dict[str, list[int]]:
    """Return the shape of each tensor by its name."""
    return {name: list(tensor.shape) for name, tensor in tensors.items()}


def find_mismatches(tensors: Weights, shapes: Shapes) -> Mismatches:
    """Compare weights with the shapes of a network's tensors, by name; a missing batch counter is not a mismatch."""
    return Mismatches(
        missing=[n for n in shapes if n not in tensors and not n.endswith(_COUNTER)],
        unexpected=[n for n in tensors if n not in shapes],
        misshaped=[n for n in shapes if n in tensors and list(tensors[n].shape) != list(shapes[n])],
    )


def describe_mismatch(
    mismatches: Mismatches, tensors: Weights, expected: Weights, *, heads: Sequence[str], num_classes: int
) -> str | None:
    """Describe a mismatch outside the heads, which fine-tuning initialises again; None where everything else fits.

    A layer with `num_classes` outputs where the file has another number, the same in all such layers, is a head too.
    """
    outputs = {
        tensors[name].shape[0]
        for name in mismatches.misshaped
        if expected[name].shape[:1] == (num_classes,) and tensors[name].shape[1:] == expected[name].shape[1:]
        if tensors[name].ndim > 0
    }
    for name in mismatches.initialised:
        if any(head in prefixes(name) for head in heads):
            continue
        if name in mismatches.missing:
            near = difflib.get_close_matches(name, mismatches.unexpected, n=2)
            return f"{name} is missing{f' (the nearest there: {joined(near)})' if near else ''}"
        is_head = len(outputs) == 1 and expected[name].shape[:1] == (num_classes,)
        if not (is_head and tensors[name].shape[1:] == expected[name].shape[1:] and tensors[name].ndim > 0):
            return f"{name} is {_shape_text(tensors[name])} but should be {_shape_text(expected[name])}"
    return None


def fit_first_layer(model: nn.Module, state: Weights) -> Weights:
    """Return the weights, with those of the first convolution converted to the number of channels of the images."""
    first = next((f"{path}.weight" for path, m in model.named_modules() if isinstance(m, nn.Conv2d)), None)
    if first is None or first not in state:
        return state
    given, needed = state[first].shape, model.get_parameter(first).shape
    if len(given) != 4 or given[1] == needed[1] or (given[0], *given[2:]) != (needed[0], *needed[2:]):
        return state
    log.info("the first layer's weights are converted from %s to %d", counted(given[1], "channel"), needed[1])
    return {**state, first: fit_channels(state[first], needed[1])}


def grouped(names: Collection[str], among: Collection[str]) -> str:
    """Return names in one line; a layer represents all of its tensors, with their number if there are several."""
    chosen = set(names)
    others = {prefix for name in among if name not in chosen for prefix in prefixes(name)}
    groups: dict[str, int] = {}
    for name in names:
        layers = prefixes(name)[1:]
        group = next((layer for layer in layers if layer not in others), name)
        groups[group] = groups.get(group, 0) + 1
    shown = [f"{group} ({count} tensors)" if count > 1 else group for group, count in groups.items()]
    rest = f" and {counted(len(shown) - MAX_GROUPS, 'other')}" if len(shown) > MAX_GROUPS else ""
    return f"{', '.join(shown[:MAX_GROUPS])}{rest}"


def _shared(expected: Weights, state: Weights) -> Weights:
    """Return the tensors that are missing in a file but share their memory with others that it has."""
    groups: dict[tuple[int, torch.Size], list[str]] = {}
    for name, tensor in expected.items():
        if tensor.numel():
            groups.setdefault((tensor.data_ptr(), tensor.shape), []).append(name)
    found: Weights = {}
    for names in groups.values():
        if given := next((name for name in names if name in state), None):
            found |= {name: state[given] for name in names if name not in state}
    return found


def _report(
    title: str, choice: Choice, mismatches: Mismatches, tensors: Weights, expected: Weights, *, heads: Sequence[str]
) -> None:
    used = choice.used
    origin = f" from {used.entry!r}" if used.entry else ""
    average = ", a moving average" if used.is_average else ""
    prefix = f", without {used.prefix!r} before their names" if used.prefix else ""
    loaded = sum(name in tensors for name in expected) - len(mismatches.misshaped)
    tensors_of_model = counted(len(expected), "tensor")
    initialised = ""
    if mismatches.initialised:
        layers = {name.rpartition(".")[0] for name in mismatches.initialised}
        counters = [n for n in expected if n not in tensors and n.endswith(_COUNTER) and n.rpartition(".")[0] in layers]
        names = dict.fromkeys([*mismatches.initialised, *counters])
        shown = ", ".join(names) if len(names) <= MAX_NAMES else grouped(names, expected)
        initialised = f"; initialised: {shown}{_outputs(mismatches, tensors, expected)}"
    log.info(
        "%s: loaded %d of the model's %s%s%s%s%s",
        *(title, loaded, tensors_of_model, origin, average, prefix, initialised),
    )
    others = [name for name in mismatches.misshaped if not any(head in prefixes(name) for head in heads)]
    for name in others[:MAX_GROUPS]:
        log.info(
            "  of another shape: %s is %s, expected %s", name, _shape_text(tensors[name]), _shape_text(expected[name])
        )
    if mismatches.unexpected:
        log.warning("%s: the model has no place for %s", title, grouped(mismatches.unexpected, tensors))
    if used.rest:
        log.info("  beside them, not loaded: %s", grouped(used.rest, [*used.rest, *used.tensors]))
    if choice.others:
        example = f"{ENTRY_KEY}={choice.others[0]}"
        log.info("  other weights in it, not loaded: %s; %s loads those", ", ".join(choice.others), example)


def _outputs(mismatches: Mismatches, tensors: Weights, expected: Weights) -> str:
    """Describe the numbers of outputs of layers that differ only in these; empty unless all have the same numbers."""
    found = {
        (len(tensors[name]), len(expected[name]))
        for name in mismatches.misshaped
        if tensors[name].ndim and expected[name].ndim and tensors[name].shape[1:] == expected[name].shape[1:]
    }
    if len(found) != 1 or mismatches.missing:
        return ""
    given, needed = found.pop()
    return f" ({counted(given, 'output')} there, {needed} here)"


def _shape_text(tensor: torch.Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a scalar"
