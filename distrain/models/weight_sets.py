"""Finds the sets of weights in a file, and the one whose names and shapes match a network.

Trainers save a state_dict under a key (`model`, `state_dict`), or several of them (`model`, `model_ema`), and add a
prefix to all names (`module.`, `model.`, `_orig_mod.`). A set is one of these state_dicts without the prefix.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from distrain.errors import ModelError
from distrain.messages import nearest
from distrain.models.weight_files import kind_of

Weights = dict[str, torch.Tensor]
Shapes = Mapping[str, Sequence[int]]
Fact = str | int | float | bool

# The keys under which training scripts save their weights, the most common first.
COMMON_KEYS = ("state_dict", "model_state_dict", "model", "net", "network", "module", "weights")
# Modules that DataParallel, torch.compile, FSDP, activation checkpointing and DeepSpeed wrap around a module.
WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"}
NUM_AVERAGED = "n_averaged"  # the counter of torch's AveragedModel
_AVERAGED = re.compile(r"(^|[._])(ema|swa|averaged?|avg|shadow)(\d*|_?model)([._]|$)")
_NOT_SEARCHED = ("optim", "scheduler", "lr_scheduler", "scaler")  # prefixes of entries without weights
_MAX_DEPTH = 4  # entries within entries


@dataclass(frozen=True)
class WeightSet:
    """Weights that belong together, with the names of a network where they were matched to one.

    `label` is their place in the file: `model_ema`, or `state_dict.model`; empty where they are the whole file.
    """

    label: str
    tensors: Weights
    entry: str | None = None  # their key, None where they are the whole file
    prefix: str = ""  # removed from their names
    rest: tuple[str, ...] = ()  # names beside them in the same entry
    is_average: bool = False  # a moving average of the trained weights
    score: tuple[int, int] = (0, 0)  # the number of the network's tensors in it, by name and shape, and by name


@dataclass(frozen=True)
class StoredWeights:
    """The content of a file, a checkpoint or a bundle: state_dicts by the path of their keys, and other entries."""

    entries: dict[str | None, Weights]
    facts: dict[str, Fact] = field(default_factory=dict)  # such as epoch and accuracy
    left: dict[str, str] = field(default_factory=dict)  # entries without weights, and a description of each
    contents: str = ""  # a short description for a message
    classes: tuple[str, ...] = ()  # the names of the outputs, where they are known
    network: str = ""  # the name of the network that they were trained as, where it is known
    origin: str = ""  # which checkpoint of a run it is, for a message


def find_entries(content: Any) -> StoredWeights:
    """Return the state_dicts in the content of a file, at any depth; there may be none."""
    entries: dict[str | None, Weights] = {}
    facts: dict[str, Fact] = {}
    left: dict[str, str] = {}
    _search(content, None, entries=entries, depth=0)
    inside = {str(key).split(".")[0] for key in entries if key is not None}
    if isinstance(content, Mapping):
        for key, value in content.items():
            plain = None if isinstance(value, torch.Tensor) and None in entries else _plain(value)
            if key in inside or (None in entries and isinstance(value, torch.Tensor)):
                continue
            if plain is None:
                left[str(key)] = kind_of(value)
            else:
                facts[str(key)] = plain
    return StoredWeights(entries, facts, left, _contents(content))


def choose(stored: StoredWeights, shapes: Shapes | None, *, wanted: str | None, title: str, key: str) -> "Choice":
    """Return the set to use: the one that best fits a network with `shapes` by name, or has the most common key.

    Trained weights are preferred to their moving averages. `wanted` is the label of a set that the user chose with
    `key`, an option or a key of the recipe; `title` is the name of the file in messages. Raises `ModelError` for a
    missing set, and where several fit equally well.
    """
    if not any(stored.entries.values()):
        raise ModelError(f"{title} holds no tensors by name{stored.contents}; save the model's state_dict()")
    found = list(_plain_sets(stored) if shapes is None else _fitting_sets(stored, shapes))
    if not found:
        raise ModelError(f"{title} does not fit the model: no tensor has the name and shape of one of its weights")
    best = max(a.score for a in found)
    strong = [a for a in found if 2 * sum(a.score) >= sum(best)]  # not those with only a few matching names
    if wanted is not None:
        named = [a for a in found if a.label == wanted] or [a for a in strong if a.label.split(".")[-1] == wanted]
        if not named:
            labels = [a.label for a in strong if a.label]
            holds = nearest(wanted, labels) or (f"; it holds {', '.join(labels[:6])}" if labels else "")
            what = "" if shapes is None else " for this model"
            raise ModelError(f"{title} has no weights {wanted!r}{what} ({key}){holds}")
        found = named
    else:
        found = strong
    found.sort(key=_rank)
    first, *rest = found
    if rest and _rank(rest[0])[:3] == _rank(first)[:3] and rest[0].label != first.label:
        equal = [a.label for a in found if _rank(a)[:3] == _rank(first)[:3]]
        raise ModelError(f"{title} holds several sets of weights ({', '.join(equal)}); choose one with {key}=NAME")
    return Choice(first, tuple(a.label for a in strong if a.label not in {"", first.label}))


@dataclass(frozen=True)
class Choice:
    """The set of weights that is used, and the labels of those that are not."""

    used: WeightSet
    others: tuple[str, ...]


def _rank(found: WeightSet) -> tuple[bool, tuple[int, int], int, int]:
    last = found.label.split(".")[-1]
    commonness = -1 if not last else COMMON_KEYS.index(last) if last in COMMON_KEYS else len(COMMON_KEYS)
    return found.is_average, (-found.score[0], -found.score[1]), commonness, len(found.prefix)


def _plain_sets(stored: StoredWeights) -> Iterator[WeightSet]:
    """Yield each entry as a set, without the names of wrappers."""
    for entry, tensors in stored.entries.items():
        names, is_average = _names_of(tensors)
        prefix = ""
        while names and (wrapper := next((w for w in WRAPPERS if all(n.startswith(f"{w}.") for n in names)), None)):
            prefix += f"{wrapper}."
            names = [name.removeprefix(f"{wrapper}.") for name in names]
        originals = [f"{prefix}{name}" for name in names]
        label = entry or ""
        yield WeightSet(
            label=label,
            tensors={name: tensors[original] for name, original in zip(names, originals, strict=True)},
            entry=entry,
            prefix=prefix,
            rest=tuple(name for name in tensors if name not in originals),
            is_average=is_average or _AVERAGED.search(label) is not None,
        )


def _fitting_sets(stored: StoredWeights, shapes: Shapes) -> Iterator[WeightSet]:
    """Yield the sets in each entry that have a tensor with a name of the network's, after a common prefix."""
    network_names = _without_wrappers(shapes)
    found = [a for entry in stored.entries for a in _sets_in(stored.entries[entry], network_names, shapes, entry=entry)]
    if not any(a.score[0] for a in found) and (part := _shared_module_path(network_names)):
        # The network itself wraps a network whose names are in the file.
        inner = {name.removeprefix(part): full for name, full in network_names.items()}
        found += [a for entry in stored.entries for a in _sets_in(stored.entries[entry], inner, shapes, entry=entry)]
    yield from (a for a in found if a.score[0])


def _sets_in(
    tensors: Weights, network_names: dict[str, str], shapes: Shapes, *, entry: str | None
) -> Iterator[WeightSet]:
    """Yield the sets in one entry; `network_names` maps the network's names without wrappers to the full names."""
    names, is_average = _names_of(tensors)
    canonical = _without_wrappers(names)
    scores: Counter[str] = Counter()
    shaped: Counter[str] = Counter()
    for name, original in canonical.items():
        for start in _starts(name):
            if (full := network_names.get(name[start:])) is not None:
                scores[name[:start]] += 1
                shaped[name[:start]] += tensors[original].shape == torch.Size(shapes[full])
    for part, count in scores.items():
        inside = {name.removeprefix(part): old for name, old in canonical.items() if name.startswith(part)}
        label = ".".join(filter(None, (entry, part.rstrip("."))))
        yield WeightSet(
            label=label,
            tensors={network_names.get(name, name): tensors[old] for name, old in inside.items()},
            entry=entry,
            prefix=_common_prefix(inside),
            rest=tuple(old for name, old in canonical.items() if not name.startswith(part)),
            is_average=is_average or _AVERAGED.search(label) is not None,
            score=(shaped[part], count),
        )


def _names_of(tensors: Weights) -> tuple[list[str], bool]:
    """Return the names of an entry without the counter of an average, and whether it is an average."""
    is_average = NUM_AVERAGED in tensors and tensors[NUM_AVERAGED].ndim == 0
    return [name for name in tensors if not (is_average and name == NUM_AVERAGED)], is_average


def _without_wrappers(names: Iterator[str] | Sequence[str] | Shapes) -> dict[str, str]:
    """Return the names by their form without wrappers; unchanged where two of these would be equal."""
    stripped = {".".join(part for part in name.split(".") if part not in WRAPPERS): name for name in names}
    everything = list(names)
    return stripped if len(stripped) == len(everything) else {name: name for name in everything}


def _starts(name: str) -> Iterator[int]:
    yield 0
    yield from (match.end() for match in re.finditer(r"\.", name))


def _shared_module_path(names: Mapping[str, str]) -> str:
    """Return the module path that all names share, for example `net.`."""
    split = [name.split(".")[:-1] for name in names]
    common: list[str] = []
    for parts in zip(*split, strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    return "".join(f"{part}." for part in common)


def _common_prefix(originals: Mapping[str, str]) -> str:
    """Return the prefix that all original names have before the new ones; empty where there is no such prefix."""
    parts = {old.removesuffix(new) if old.endswith(new) else None for new, old in originals.items()}
    return (parts.pop() or "") if len(parts) == 1 else ""


def _search(content: Any, key: str | None, *, entries: dict[str | None, Weights], depth: int) -> None:
    if not isinstance(content, Mapping) or depth > _MAX_DEPTH:
        return
    if _is_weights(content):
        entries[key] = {name: value for name, value in content.items() if isinstance(value, torch.Tensor)}
        return
    for name, value in content.items():
        if isinstance(name, str) and not name.lower().startswith(_NOT_SEARCHED):
            _search(value, name if key is None else f"{key}.{name}", entries=entries, depth=depth + 1)


def _is_weights(content: Mapping[Any, Any]) -> bool:
    """Whether most entries are tensors by name: some files have a counter among them."""
    if not all(isinstance(key, str) for key in content):
        return False
    return 2 * sum(isinstance(value, torch.Tensor) for value in content.values()) > len(content)


def _plain(value: Any) -> Fact | None:
    """Return a number or a text as a Python value, None for anything else."""
    if isinstance(value, torch.Tensor | np.ndarray | np.generic) and value.ndim == 0:
        value = value.item()
    return value if isinstance(value, str | int | float | bool) else None


def _contents(content: Any) -> str:
    if not isinstance(content, Mapping):
        return f", but {kind_of(content)}"
    return f", but {', '.join(f'{key} ({kind_of(value)})' for key, value in list(content.items())[:6])}"
