"""Defines the protocol of a source of samples, and sources in memory, of a user's dataset, and of a subset.

A source either keeps its images in memory as one uint8 tensor, or reads them one by one.
"""

import hashlib
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from distrain.config.metrics import Target
from distrain.data.loading.isolation import Isolated, KilledError
from distrain.data.sources.files import to_tensor
from distrain.data.sources.outputs import read_outputs
from distrain.data.sources.stream import Stream
from distrain.data.sources.targets import check_targets, to_mask
from distrain.errors import DataError
from distrain.system.exits import place_of_code

Batch = tuple[torch.Tensor, torch.Tensor]  # images [n, channels, height, width], targets as `stack_targets` gives them


class Source(Protocol):
    """The samples of one split."""

    @property
    def classes(self) -> Sequence[str]:
        """The names of the outputs: of the classes in the order of their numbers, of the labels, or of the values."""
        ...

    @property
    def target(self) -> Target:
        """What a sample has: one class, any number of labels, values, or a mask."""
        ...

    @property
    def targets(self) -> torch.Tensor:
        """All targets, read without the images where possible: int64 [n], float32 [n, outputs], or uint8 masks."""
        ...

    @property
    def has_known_targets(self) -> bool:
        """Whether `targets` are known without reading samples."""
        ...

    @property
    def is_thread_safe(self) -> bool:
        """Whether several threads of a process may call `read` at once, and a call only decodes an image.

        Such a source may be read by loader threads, and is cached in memory where it is small, unless the recipe says
        otherwise. Other sources may draw random numbers, from generators that are seeded for each sample.
        """
        ...

    def __len__(self) -> int:
        """Return the number of samples."""
        ...

    def read(self, index: int) -> tuple[torch.Tensor, int | torch.Tensor]:
        """Return a sample's image, uint8 or float [channels, height, width], and its target.

        The target is the number of a class; for labels float32 [outputs] of 0 and 1; for values float32 [outputs]; for
        masks uint8 [height, width] as of the image, the number of a class for each pixel, or 255 for none.
        """
        ...

    def describe(self, index: int) -> str:
        """Return the name of a sample for messages, such as its path."""
        ...

    def fingerprint(self) -> str:
        """Return a digest that changes when the samples, their order or their targets change."""
        ...


class TensorSource:
    """Samples held in memory: `images` uint8 [n, channels, height, width], `targets` int64 [n] or float32 [n, outputs].

    `fingerprint` and `describe` replace those computed from pixels and indices; `is_mapped` says that the images are in
    a mapped file, which may be larger than memory. Raises `DataError` for a target that does not fit its kind.
    """

    has_known_targets = True
    is_thread_safe = True

    def __init__(
        self,
        images: torch.Tensor,
        targets: torch.Tensor,
        classes: Sequence[str],
        *,
        target: Target = "class",
        fingerprint: str | None = None,
        describe: Callable[[int], str] | None = None,
        is_mapped: bool = False,
    ) -> None:
        self.images = images
        self.targets = targets
        self.classes = classes
        self.target: Target = target
        self.is_mapped = is_mapped
        self._fingerprint = fingerprint
        self._describe = describe
        check_targets(targets, classes, target, describe=self.describe)

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.targets)

    def read(self, index: int) -> tuple[torch.Tensor, int | torch.Tensor]:
        """Return one image and its target."""
        return self.images[index], target_at(self.targets, index)

    def describe(self, index: int) -> str:
        """Return the sample's name, or its number."""
        return f"sample {index}" if self._describe is None else self._describe(index)

    def fingerprint(self) -> str:
        """Return the given digest, or one over all pixels and targets."""
        if self._fingerprint is not None:
            return self._fingerprint
        digest = hashlib.sha256(self.images.numpy().tobytes())
        digest.update(self.targets.numpy().tobytes())
        return digest.hexdigest()


class DatasetSource:
    """A user's dataset: `len()`, `dataset[i] -> (image, target)`, `dataset.classes` and optionally `.target`.

    `targets` are those of all samples, where they are known without reading the samples. `name` identifies the dataset
    in messages, and together with `arguments` in its fingerprint. `dataset[i]` may not be thread-safe, so one thread
    reads it.
    """

    is_thread_safe = False

    def __init__(self, dataset: Any, *, name: str, targets: torch.Tensor | None = None, arguments: str = "") -> None:
        self.target, self.classes = read_outputs(dataset, source=name)
        if not hasattr(dataset, "__len__"):
            raise DataError(f"data.source={name}: the dataset has no __len__{place_of_code(type(dataset))}; define it")
        self.is_stream = isinstance(dataset, Stream)
        reads = dataset.code if isinstance(dataset, Stream) else getattr(type(dataset), "__getitem__", None)
        self._place = place_of_code(reads)
        self._dataset = dataset
        self._name = name
        self._known = targets
        self._arguments = arguments
        if targets is not None:
            if len(targets) != len(self):
                raise DataError(
                    f"data.source={name}: len() of its targets is {len(targets)}, that of the dataset {len(self)}"
                )
            check_targets(targets, self.classes, self.target, describe=self.describe)

    @property
    def has_known_targets(self) -> bool:
        """Whether the targets were given with the dataset."""
        return self._known is not None

    @cached_property
    def targets(self) -> torch.Tensor:
        """All targets; where they are not known, every sample is read to find them."""
        if self._known is not None:
            return self._known
        if self.is_stream:
            raise DataError(
                f"data.source={self._name} is a stream, whose targets are unknown before its samples are read; remove "
                f"data.sampling=balanced, loss.class_weights=balanced and data.val_fraction, which need them"
            )
        return self._read_targets()

    def seed_stream(self, seed: int) -> None:
        """Set the seed of a stream's random draws; other datasets are seeded sample by sample."""
        if self.is_stream:
            self._dataset.seed = seed

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self._dataset)

    def read(self, index: int) -> tuple[torch.Tensor, int | torch.Tensor]:
        """Return one image, converted to a uint8 tensor where it is a PIL image, and its checked target."""
        image, target = self._sample(index)
        if isinstance(image, Image.Image):
            image = to_tensor(image)
        if not isinstance(image, torch.Tensor):
            kind = type(image).__name__
            raise DataError(f"{self.describe(index)} is of type {kind}{self._place}; return a tensor or a Pillow image")
        if self.target == "mask":
            mask = target if isinstance(target, torch.Tensor) else torch.from_numpy(np.array(target))
            return image, to_mask(mask, image, self.classes, describe=lambda: self.describe(index))
        return image, self._target(index, target)

    def describe(self, index: int) -> str:
        """Return the dataset's name and the sample's number."""
        return self._dataset.describe(index) if self.is_stream else f"sample {index} of {self._name}"

    def fingerprint(self) -> str:
        """Return a digest over the dataset's name, arguments, length, classes and, where they are known, targets.

        The images are not included: they may be expensive to read.
        """
        identity = f"{self._name}:{self._arguments}:{len(self)}:{list(self.classes)}"
        known = b"" if self._known is None else self._known.numpy().tobytes()
        return hashlib.sha256(identity.encode() + known).hexdigest()

    def _read_targets(self) -> torch.Tensor:
        """Read every sample for its target, in a separate process, which a sample may crash."""

        def read(index: int) -> int | NDArray[np.float32]:
            target = self._target(index, self._sample(index)[1])
            return target if isinstance(target, int) else target.numpy()

        found = list[int | torch.Tensor]()
        with Isolated(read, 1) as process, closing(process.map(range(len(self)))) as targets:
            for index, target in enumerate(targets):
                if isinstance(target, KilledError):
                    raise DataError(f"{self.describe(index)} cannot be read ({target}); fix or remove it")
                found.append(target if isinstance(target, int) else torch.from_numpy(target))
        return stack_targets(found)

    def _sample(self, index: int) -> Any:
        try:
            sample = self._dataset[index]
        except ModuleNotFoundError as error:  # some of torchvision's datasets import a package on first use
            raise DataError(
                f"{self.describe(index)} needs the package {error.name}; install it: pip install {error.name}"
            ) from error
        except OSError as error:
            raise DataError(f"{self.describe(index)} cannot be read ({error}); fix its file") from error
        if not (isinstance(sample, tuple | list) and len(sample) == 2):
            seen = f"a {type(sample).__name__} of {len(sample)}" if hasattr(sample, "__len__") else f"{sample!r:.60}"
            raise DataError(f"{self.describe(index)} is {seen}{self._place}; return a pair (image, target)")
        return sample

    def _target(self, index: int, target: Any) -> int | torch.Tensor:
        dtype = torch.int64 if self.target == "class" else torch.float32
        try:
            seen = torch.as_tensor(target)
        except (TypeError, ValueError, RuntimeError):
            message = f"{self.describe(index)} has label {target!r:.60}, which is not a number{self._place}"
            raise DataError(message) from None
        tensor = seen.to(dtype)
        if self.target == "class" and not (tensor.ndim == 0 and tensor == seen):
            raise DataError(f"{self.describe(index)} has label {target!r:.60}; a class is one whole number")
        check_targets(tensor.unsqueeze(0), self.classes, self.target, describe=lambda _: self.describe(index))
        return int(tensor) if self.target == "class" else tensor


class SubsetSource:
    """The samples of another source at `indices` int64 [n]."""

    def __init__(self, source: Source, indices: torch.Tensor) -> None:
        self.classes = source.classes
        self.target = source.target
        self.has_known_targets = source.has_known_targets
        self.is_thread_safe = source.is_thread_safe
        self._source = source
        self._indices = indices

    @property
    def targets(self) -> torch.Tensor:
        """The targets of the chosen samples."""
        return self._source.targets[self._indices]

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self._indices)

    def read(self, index: int) -> tuple[torch.Tensor, int | torch.Tensor]:
        """Return one image and its target."""
        return self._source.read(int(self._indices[index]))

    def describe(self, index: int) -> str:
        """Return the other source's name for the sample."""
        return self._source.describe(int(self._indices[index]))

    def fingerprint(self) -> str:
        """Return a digest over the other source's fingerprint and the indices."""
        return hashlib.sha256(self._source.fingerprint().encode() + self._indices.numpy().tobytes()).hexdigest()


def subset(source: Source, indices: torch.Tensor) -> Source:
    """Return the samples of a source at `indices` int64 [n], in that order."""
    if isinstance(source, TensorSource) and not source.is_mapped:
        return TensorSource(source.images[indices], source.targets[indices], source.classes, target=source.target)
    return SubsetSource(source, indices)


def is_read_in_order(source: Source) -> bool:
    """Whether a source is a stream, whose samples are read one after another."""
    return isinstance(source, DatasetSource) and source.is_stream


def target_at(targets: torch.Tensor, index: int) -> int | torch.Tensor:
    """Return one target of many, as `Source.read` gives it."""
    return int(targets.numpy()[index]) if targets.ndim == 1 else targets[index]


class Allocator(Protocol):
    """Makes uninitialised tensors, as `torch.empty` does, in memory of its choice."""

    def __call__(self, shape: tuple[int, ...], /, *, dtype: torch.dtype) -> torch.Tensor:
        """Return a tensor of this shape and type."""
        ...


def empty_batch(image: torch.Tensor, count: int, empty: Allocator = torch.empty) -> torch.Tensor:
    """Return empty images [count, channels, height, width] with the memory format of `image`, so that none is permuted.

    A batch of decoded images is in channels-last format; `Normalize` makes the network's input contiguous.
    """
    if image.ndim == 3 and image.stride(0) == 1 and len(image) > 1:
        channels, height, width = image.shape
        return empty((count, height, width, channels), dtype=image.dtype).permute(0, 3, 1, 2)
    return empty((count, *image.shape), dtype=image.dtype)


def stack_targets(targets: Sequence[int | torch.Tensor]) -> torch.Tensor:
    """Return targets, as `Source.read` gives them, as one tensor: int64 [n], or float32 [n, outputs]."""
    if isinstance(targets[0], int):
        return torch.tensor(targets)
    return torch.stack([torch.as_tensor(target) for target in targets])
