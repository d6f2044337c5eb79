"""Concatenates sources; outputs with the same name become one output."""

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

import torch

from distrain.data.sources.base import Source
from distrain.errors import DataError


class ConcatSource:
    """The samples of several sources, one source after another, with the outputs `classes`, matched by name.

    Classes are renumbered; samples of a source without a label of that name do not have the label.
    """

    def __init__(self, sources: Sequence[Source], classes: Sequence[str]) -> None:
        self.classes = classes
        self.target = sources[0].target
        self.has_known_targets = all(source.has_known_targets for source in sources)
        self.is_thread_safe = all(source.is_thread_safe for source in sources)
        numbers = {name: number for number, name in enumerate(classes)}
        self._sources = sources
        self._numbers = [torch.tensor([numbers[name] for name in source.classes]) for source in sources]
        self._ends = list(accumulate(len(source) for source in sources))

    @property
    def targets(self) -> torch.Tensor:
        """The targets of all sources."""
        return torch.cat([self._renumber(s.targets, n) for s, n in zip(self._sources, self._numbers, strict=True)])

    def __len__(self) -> int:
        """Return the number of samples of all sources."""
        return self._ends[-1]

    def read(self, index: int) -> tuple[torch.Tensor, int | torch.Tensor]:
        """Return one image and its target, renumbered to the outputs of all sources."""
        number, local_index = self._find(index)
        image, target = self._sources[number].read(local_index)
        renumbered = self._renumber(torch.as_tensor(target).unsqueeze(0), self._numbers[number])[0]
        return image, int(renumbered) if self.target == "class" else renumbered

    def describe(self, index: int) -> str:
        """Return the name of the sample in the source that it comes from."""
        number, local_index = self._find(index)
        return self._sources[number].describe(local_index)

    def fingerprint(self) -> str:
        """Return a digest over the fingerprints of the sources and the numbers of their outputs."""
        digest = hashlib.sha256()
        for source, numbers in zip(self._sources, self._numbers, strict=True):
            digest.update(f"{source.fingerprint()}:{numbers.tolist()}\n".encode())
        return digest.hexdigest()

    def _find(self, index: int) -> tuple[int, int]:
        """Return which source a sample comes from, and its index there."""
        number = bisect_right(self._ends, index)
        return number, index - (self._ends[number] - len(self._sources[number]))

    def _renumber(self, targets: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        if self.target == "class":
            return numbers[targets]
        spread = torch.zeros(len(targets), len(self.classes))
        spread[:, numbers] = targets
        return spread


def concat(parts: Sequence[dict[str, Source]]) -> dict[str, Source]:
    """Concatenate the splits of several sources; new classes are numbered after those of earlier sources.

    Raises `DataError` where a source's val has other classes than its train, where the kinds of targets differ, or
    where a value of one source is missing in another.
    """
    kinds = [part["train"].target for part in parts]
    if len(set(kinds)) > 1:
        raise DataError(f"the sources of the data have targets of different kinds: {', '.join(kinds)}")
    for part in parts:
        if "val" in part and list(part["train"].classes) != list(part["val"].classes):
            raise DataError("the train and val splits of the data have different classes")
    if len(parts) == 1:
        return parts[0]
    classes = list(dict.fromkeys(name for part in parts for name in part["train"].classes))
    for part in parts:
        if kinds[0] == "values" and (missing := set(classes) - set(part["train"].classes)):
            raise DataError(f"a source of the data has no value {min(missing)!r}, but another has; all must have it")
    return {
        split: ConcatSource([part[split] for part in parts if split in part], classes)
        for split in ("train", "val")
        if any(split in part for part in parts)
    }
