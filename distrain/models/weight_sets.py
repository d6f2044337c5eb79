"""Finds the sets of weights in a file, and the one whose names and shapes match a network.

Trainers put a state_dict under a key of their own (`model`, `state_dict`), several of them beside each other (`model`,
`model_ema`), and a first part before all names (`module.`, `model.`, `_orig_mod.`). A set is one of them, with that
part taken off.
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

# Under what training scripts put the weights that they train, the more usual first.
USUAL = ("state_dict", "model_state_dict", "model", "net", "network", "module", "weights")
# What DataParallel and its like, torch.compile, FSDP, activation checkpointing and DeepSpeed put around a module.
WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"}
NUM_AVERAGED = "n_averaged"  # the counter of torch's AveragedModel
_AVERAGED = re.compile(r"(^|[._])(ema|swa|averaged?|avg|shadow)(\d*|_?model)([._]|$)")
_NOT_SEARCHED = ("optim", "scheduler", "lr_scheduler", "scaler")  # how the names of entries without weights begin
_DEEPEST = 4  # entries within entries


@dataclass(frozen=True)
class WeightSet:
    """Weights that belong together, by the network's names where one was given to find them by.

    `label` says where they are in the file: `model_ema`, or `state_dict.model`; empty where they are the whole file.
    """

    label: str
    tensors: Weights
    entry: str | None = None  # the key under which they are, None where they are the file
    prefix: str = ""  # taken off their names
    rest: tuple[str, ...] = ()  # names beside them in the same entry
    is_average: bool = False  # a moving average of the weights that were trained
    score: tuple[int, int] = (0, 0)  # how many of a network's tensors it has, with their shapes and by name


@dataclass(frozen=True)
class Stored:
    """What a file, a checkpoint or a bundle holds: state_dicts by the keys that lead to them, and what is beside."""

    entries: dict[str | None, Weights]
    facts: dict[str, Fact] = field(default_factory=dict)  # epoch, accuracy and the like
    left: dict[str, str] = field(default_factory=dict)  # what holds no weights, and what it is
    contents: str = ""  # in a few words, for a message


def find_entries(content: Any) -> Stored:
    """Return the state_dicts in what a file holds, however deep; there may be none."""
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
    return Stored(entries, facts, left, _contents(content))


def choose(stored: Stored, shapes: Shapes | None, *, wanted: str | None, title: str, key: str) -> "Choice":
    """Return the set to use: the one that fits best a network with `shapes` by name, or is under the most usual key.

    Weights as trained come before their moving averages. `wanted` is the label of another one, as `key` (an option or a
    recipe's key) has it, and `title` how messages call the file. Raises `ModelError` for a missing set, and
    where several are as good.
    """
    if not any(stored.entries.values()):
        raise ModelError(f"{title} holds no tensors by name{stored.contents}; save the model's state_dict()")
    found = list(_plain_sets(stored) if shapes is None else _fitting_sets(stored, shapes))
    if not found:
        raise ModelError(f"{title} does not fit the model: no name and shape is that of one of its weights")
    best = max(a.score for a in found)
    strong = [a for a in found if 2 * sum(a.score) >= sum(best)]  # not those with a name here and there
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
    usual = -1 if not last else USUAL.index(last) if last in USUAL else len(USUAL)
    return found.is_average, (-found.score[0], -found.score[1]), usual, len(found.prefix)


def _plain_sets(stored: Stored) -> Iterator[WeightSet]:
    """Yield each entry as a set, without the wrappers' names."""
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


def _fitting_sets(stored: Stored, shapes: Shapes) -> Iterator[WeightSet]:
    """Yield of each entry the sets that have a tensor with the name, after a common first part, of the network's."""
    own = _without_wrappers(shapes)
    found = [a for entry in stored.entries for a in _sets_in(stored.entries[entry], own, shapes, entry=entry)]
    if not any(a.score[0] for a in found) and (part := _first_part(own)):
        # The network is a wrapper itself, of a network whose names the file has.
        inner = {name.removeprefix(part): full for name, full in own.items()}
        found += [a for entry in stored.entries for a in _sets_in(stored.entries[entry], inner, shapes, entry=entry)]
    yield from (a for a in found if a.score[0])


def _sets_in(tensors: Weights, own: dict[str, str], shapes: Shapes, *, entry: str | None) -> Iterator[WeightSet]:
    """Yield the sets in one entry; `own` are the network's names by what is left of them without wrappers."""
    names, is_average = _names_of(tensors)
    canonical = _without_wrappers(names)
    scores: Counter[str] = Counter()
    shaped: Counter[str] = Counter()
    for name, original in canonical.items():
        for start in _starts(name):
            if (full := own.get(name[start:])) is not None:
                scores[name[:start]] += 1
                shaped[name[:start]] += tensors[original].shape == torch.Size(shapes[full])
    for part, count in scores.items():
        inside = {name.removeprefix(part): old for name, old in canonical.items() if name.startswith(part)}
        label = ".".join(filter(None, (entry, part.rstrip("."))))
        yield WeightSet(
            label=label,
            tensors={own.get(name, name): tensors[old] for name, old in inside.items()},
            entry=entry,
            prefix=_taken_off(inside),
            rest=tuple(old for name, old in canonical.items() if not name.startswith(part)),
            is_average=is_average or _AVERAGED.search(label) is not None,
            score=(shaped[part], count),
        )


def _names_of(tensors: Weights) -> tuple[list[str], bool]:
    """Return the names of an entry without the counter of an average, and whether it is one."""
    is_average = NUM_AVERAGED in tensors and tensors[NUM_AVERAGED].ndim == 0
    return [name for name in tensors if not (is_average and name == NUM_AVERAGED)], is_average


def _without_wrappers(names: Iterator[str] | Sequence[str] | Shapes) -> dict[str, str]:
    """Return the names by what is left of them without the names of wrappers; unchanged where two would be the same."""
    stripped = {".".join(part for part in name.split(".") if part not in WRAPPERS): name for name in names}
    everything = list(names)
    return stripped if len(stripped) == len(everything) else {name: name for name in everything}


def _starts(name: str) -> Iterator[int]:
    yield 0
    yield from (match.end() for match in re.finditer(r"\.", name))


def _first_part(names: Mapping[str, str]) -> str:
    """Return the parts of their names that all tensors have in common, `net.` for example."""
    split = [name.split(".")[:-1] for name in names]
    common: list[str] = []
    for parts in zip(*split, strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    return "".join(f"{part}." for part in common)


def _taken_off(originals: Mapping[str, str]) -> str:
    """Return the first part that all original names have before the new ones; empty where they differ in more."""
    parts = {old.removesuffix(new) if old.endswith(new) else None for new, old in originals.items()}
    return (parts.pop() or "") if len(parts) == 1 else ""


def _search(content: Any, key: str | None, *, entries: dict[str | None, Weights], depth: int) -> None:
    if not isinstance(content, Mapping) or depth > _DEEPEST:
        return
    if _is_weights(content):
        entries[key] = {name: value for name, value in content.items() if isinstance(value, torch.Tensor)}
        return
    for name, value in content.items():
        if isinstance(name, str) and not name.lower().startswith(_NOT_SEARCHED):
            _search(value, name if key is None else f"{key}.{name}", entries=entries, depth=depth + 1)


def _is_weights(content: Mapping[Any, Any]) -> bool:
    """Whether most entries are tensors by name: some files put a counter among them."""
    if not all(isinstance(key, str) for key in content):
        return False
    return 2 * sum(isinstance(value, torch.Tensor) for value in content.values()) > len(content)


def _plain(value: Any) -> Fact | None:
    """Return a number or a word as Python's own, None for anything else."""
    if isinstance(value, torch.Tensor | np.ndarray | np.generic) and value.ndim == 0:
        value = value.item()
    return value if isinstance(value, str | int | float | bool) else None


def _contents(content: Any) -> str:
    if not isinstance(content, Mapping):
        return f", but {kind_of(content)}"
    return f", but {', '.join(f'{key} ({kind_of(value)})' for key, value in list(content.items())[:6])}"
