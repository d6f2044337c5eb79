"""Reads weights saved by other programs, as training does, and compares them with a model."""

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from distrain.config import Model
from distrain.errors import ModelError
from distrain.messages import counted
from distrain.models.registry import build_model, head_paths
from distrain.models.weight_files import read_content
from distrain.models.weight_sets import Fact, StoredWeights, Weights, choose, find_entries
from distrain.models.weights import describe_mismatch, find_mismatches, fit_first_layer, grouped, shapes_of

_NUM_CLASSES = 10  # of a network that is built only for its names


@dataclass(frozen=True)
class WeightMatch:
    """How the names and shapes in a file match those of a model."""

    num_classes: int
    missing: list[str]  # in the file
    unexpected: list[str]  # by the model
    misshaped: list[tuple[str, list[int], list[int]]]  # name, shape in the file, shape in the model
    initialised: str  # the tensors that training would not load, in one line
    fault: str | None  # why `model.weights` refuses the file: a mismatch outside the heads, which training initialises

    @property
    def is_good(self) -> bool:
        """Whether `model.weights` loads the file."""
        return self.fault is None


@dataclass(frozen=True)
class ImportedWeights:
    """The weights of a file by their names in the plain model, and its other content."""

    tensors: Weights
    entry: str | None  # their key in the file, None where they are the whole file
    prefix: str  # removed from their names
    is_average: bool
    facts: dict[str, Fact]  # such as epoch and accuracy
    left: dict[str, str]  # unused entries, and a description of each
    fit: WeightMatch | None  # the comparison with a model, where one was given

    @property
    def num_parameters(self) -> int:
        """The number of elements of all floating-point tensors, weights and buffers."""
        return sum(tensor.numel() for tensor in self.tensors.values() if tensor.is_floating_point())


def read_weights_to_import(
    file: Path, *, wanted: str | None = None, model_name: str | None = None, num_classes: int | None = None
) -> ImportedWeights:
    """Read a .pth, .pt, .bin or .safetensors file of weights, and compare them with the model `model_name`.

    `wanted` is the entry to use where the file has several. Without `num_classes` the model has as many as the file's
    head has outputs. Raises `ModelError` for a file that holds no weights, or code, and for an unknown model.
    """
    stored = find_entries(read_content(file, title=str(file)))
    shapes = None
    if model_name is not None:
        shapes = shapes_of(_build(model_name, _NUM_CLASSES, _channels(stored))[0].state_dict())
    choice = choose(stored, shapes, wanted=wanted, title=str(file), key="--entry")
    used = choice.used
    left = {
        str(entry): f"{counted(len(tensors), 'tensor')}; --entry {entry} takes them"
        for entry, tensors in stored.entries.items()
        if entry != used.entry
    }
    entry_tensors = stored.entries[used.entry]
    left |= {name: f"a tensor {list(entry_tensors[name].shape)}" for name in used.rest}
    left |= stored.left
    fit = None if model_name is None else _compare(used.tensors, model_name, stored, num_classes=num_classes)
    return ImportedWeights(used.tensors, used.entry, used.prefix, used.is_average, stored.facts, left, fit)


def _compare(tensors: Weights, name: str, stored: StoredWeights, *, num_classes: int | None) -> WeightMatch:
    if num_classes is None:
        _, heads = _build(name, _NUM_CLASSES, _channels(stored))
        found = next((tensors[f"{head}.weight"] for head in heads if f"{head}.weight" in tensors), None)
        num_classes = 1000 if found is None else found.shape[0]
    model, heads = _build(name, num_classes, _channels(stored))
    expected = model.state_dict()
    tensors = fit_first_layer(model, tensors)
    mismatches = find_mismatches(tensors, shapes_of(expected))
    return WeightMatch(
        num_classes=num_classes,
        missing=mismatches.missing,
        unexpected=mismatches.unexpected,
        misshaped=[(n, list(tensors[n].shape), list(expected[n].shape)) for n in mismatches.misshaped],
        initialised=grouped(mismatches.initialised, expected),
        fault=describe_mismatch(mismatches, tensors, expected, heads=heads, num_classes=num_classes),
    )


def _channels(stored: StoredWeights) -> int:
    """Return the number of image channels of the network that a file's weights are from."""
    convolutions = (t for tensors in stored.entries.values() for t in tensors.values() if t.ndim == 4)
    first = next(convolutions, None)  # [out, in, height, width]
    return 3 if first is None else first.shape[1]


def _build(name: str, num_classes: int, in_channels: int) -> tuple[nn.Module, list[str]]:
    """Return a model with random weights, and the paths of its heads."""
    config = Model(name=name, weights=None)
    try:
        model = build_model(config, num_classes=num_classes, in_channels=in_channels)
    except TypeError as error:
        raise ModelError(f"{name} cannot be built with num_classes={num_classes}: {error}") from None
    return model, head_paths(config, model)
