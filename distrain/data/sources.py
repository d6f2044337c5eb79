"""Owns where samples come from: each source gives the training and the validation samples of a recipe.

A source either holds its images whole, as one uint8 tensor, or reads them one by one.
"""

import difflib
import hashlib
import re
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from distrain.data.folder import FolderSplit, scan_image_folder
from distrain.errors import DataError, RecipeError
from distrain.recipe import Data
from distrain.references import is_reference, load_reference
from distrain.seeds import permutation

CACHE = Path("~/.cache/distrain").expanduser()


class Source(Protocol):
    """The samples of one split."""

    @property
    def classes(self) -> Sequence[str]:
        """The names of the classes, by label."""
        ...

    def __len__(self) -> int:
        """Return the number of samples."""
        ...

    def read(self, index: int) -> tuple[torch.Tensor, int]:
        """Return a sample's image, uint8 or float [channels, height, width], and its label."""
        ...

    def describe(self, index: int) -> str:
        """Return the words that name a sample in a message, such as its path."""
        ...

    def fingerprint(self) -> str:
        """Return a digest that changes when the samples, their order or their labels change."""
        ...


class TensorSource:
    """Samples held in memory: `images` uint8 [n, channels, height, width], `labels` int64 [n]."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor, classes: Sequence[str]) -> None:
        self.images = images
        self.labels = labels
        self.classes = classes
        bad = (labels < 0) | (labels >= len(classes))
        if bad.any():
            index = int(bad.nonzero()[0])
            raise DataError(_label_out_of_range(f"sample {index}", int(labels[index]), len(classes)))

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.labels)

    def read(self, index: int) -> tuple[torch.Tensor, int]:
        """Return one image and its label."""
        return self.images[index], int(self.labels[index])

    def describe(self, index: int) -> str:
        """Return the sample's number."""
        return f"sample {index}"

    def fingerprint(self) -> str:
        """Return a digest over all pixels and labels."""
        digest = hashlib.sha256(self.images.numpy().tobytes())
        digest.update(self.labels.numpy().tobytes())
        return digest.hexdigest()


class FolderSource:
    """Images read from the files of one split of an image folder, as RGB."""

    def __init__(self, split: FolderSplit) -> None:
        self.classes = split.classes
        self._paths = split.paths
        self._labels = split.labels

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._paths)

    def read(self, index: int) -> tuple[torch.Tensor, int]:
        """Decode one image to uint8 [3, height, width]; raises `DataError` with its path where that fails."""
        return decode(self._paths[index]), self._labels[index]

    def describe(self, index: int) -> str:
        """Return the image's path."""
        return self._paths[index]

    def fingerprint(self) -> str:
        """Return a digest over the names below the class folders, the sizes of the files and the labels."""
        digest = hashlib.sha256()
        for path, label in zip(self._paths, self._labels, strict=True):
            name = Path(path)
            digest.update(f"{label}/{name.name}:{name.stat().st_size}\n".encode())
        return digest.hexdigest()


class DatasetSource:
    """A dataset of the user's: `len()`, `dataset[i] -> (image, label)`, and `dataset.classes`."""

    def __init__(self, dataset: Any, *, name: str) -> None:
        if not hasattr(dataset, "classes"):
            raise DataError(f"data.source={name}: the dataset has no `classes`, the list of class names")
        self.classes: Sequence[str] = list(dataset.classes)
        self._dataset = dataset
        self._name = name

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self._dataset)

    def read(self, index: int) -> tuple[torch.Tensor, int]:
        """Return one image, made a uint8 tensor where it is a PIL image, and its label, checked against the classes."""
        image, label = self._dataset[index]
        if not 0 <= int(label) < len(self.classes):
            raise DataError(_label_out_of_range(self.describe(index), int(label), len(self.classes)))
        tensor = image if isinstance(image, torch.Tensor) else _to_tensor(image)
        return tensor, int(label)

    def describe(self, index: int) -> str:
        """Return the dataset's name and the sample's number."""
        return f"sample {index} of {self._name}"

    def fingerprint(self) -> str:
        """Return a digest over the dataset's name, length and classes: its samples may be costly to read."""
        return hashlib.sha256(f"{self._name}:{len(self)}:{list(self.classes)}".encode()).hexdigest()


class PartSource:
    """Some samples of another source, by their indices int64[n] in it."""

    def __init__(self, source: Source, indices: NDArray[np.int64]) -> None:
        self.classes = source.classes
        self._source = source
        self._indices = indices

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self._indices)

    def read(self, index: int) -> tuple[torch.Tensor, int]:
        """Return one image and its label."""
        return self._source.read(int(self._indices[index]))

    def describe(self, index: int) -> str:
        """Return the other source's words for the sample."""
        return self._source.describe(int(self._indices[index]))

    def fingerprint(self) -> str:
        """Return a digest over the other source's own and the choice from it."""
        return hashlib.sha256(self._source.fingerprint().encode() + self._indices.tobytes()).hexdigest()


def open_sources(config: Data) -> dict[str, Source]:
    """Open the `train` and the `val` split of a recipe's data; raises a `UserError` where they cannot be had."""
    if is_reference(config.source):
        factory = load_reference(config.source, key="data.source")
        return {s: DatasetSource(factory(split=s, path=config.path), name=config.source) for s in ("train", "val")}
    if config.source not in SOURCES:
        near = difflib.get_close_matches(config.source, SOURCES, n=1)
        hint = f"did you mean {near[0]}?" if near else f"take {', '.join(SOURCES)}, or package.module:factory"
        raise RecipeError(f"there is no data.source {config.source!r}; {hint}")
    return SOURCES[config.source](config.path)


def choose_samples(sources: dict[str, Source], config: Data, *, seed: int) -> dict[str, Source]:
    """Return the sources cut to `data.train_samples` and `data.val_samples`, drawn from all classes by the seed."""
    wanted = {"train": config.train_samples, "val": config.val_samples}
    return {split: _choose(source, wanted[split], seed) for split, source in sources.items()}


def _choose(source: Source, num_samples: int | None, seed: int) -> Source:
    if num_samples is None or num_samples >= len(source):
        return source
    indices = np.sort(permutation(seed, 0, len(source))[:num_samples])
    if isinstance(source, TensorSource):
        chosen = torch.from_numpy(indices)
        return TensorSource(source.images[chosen], source.labels[chosen], source.classes)
    return PartSource(source, indices)


def _open_digits(path: str | None) -> dict[str, Source]:
    """Open the handwritten digits that ship with distrain; every fifth image validates.

    Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998,
    https://doi.org/10.24432/C50P49, licensed CC BY 4.0: the 1,797 images of its test part, 8x8, 0 to 16.
    """
    if path is not None:
        raise DataError(f"the digits ship with distrain, so --data {path} would go unread; leave it out")
    with resources.as_file(resources.files("distrain") / "data" / "digits.npz") as file, np.load(file) as arrays:
        ink, labels = arrays["images"], arrays["labels"]
    images = torch.from_numpy(np.round(ink * (255 / 16)).astype(np.uint8)).unsqueeze(1)  # [n, 1, 8, 8]
    validates = torch.arange(len(images)) % 5 == 4
    targets = torch.from_numpy(labels.astype(np.int64))
    names = [str(digit) for digit in range(10)]
    return {
        "train": TensorSource(images[~validates], targets[~validates], names),
        "val": TensorSource(images[validates], targets[validates], names),
    }


def _open_cifar10(path: str | None) -> dict[str, Source]:
    """Open CIFAR-10: an image folder, torchvision's own files below `path`, or these downloaded to the cache."""
    from torchvision.datasets import CIFAR10

    if path is not None and (Path(path) / "train").is_dir():
        return _open_image_folder(path)
    if path is not None and not (Path(path) / CIFAR10.base_folder).is_dir():
        raise DataError(f"data folder {path} holds neither train/ and test/ nor torchvision's {CIFAR10.base_folder}/")
    root = CACHE / "cifar10" if path is None else Path(path)
    splits: dict[str, Source] = {}
    for split in ("train", "val"):
        try:
            dataset = CIFAR10(str(root), train=split == "train", download=path is None)
        except (OSError, RuntimeError) as error:
            raise DataError(
                f"CIFAR-10 could not be had from {root} or the network ({error}); give a folder with --data DIR"
            ) from None
        images = torch.from_numpy(dataset.data).permute(0, 3, 1, 2).contiguous()
        splits[split] = TensorSource(images, torch.tensor(dataset.targets), dataset.classes)
    return splits


def _open_image_folder(path: str | None) -> dict[str, Source]:
    return {split: FolderSource(found) for split, found in scan_image_folder(path).items()}


def decode(path: str, *, num_channels: int = 3) -> torch.Tensor:
    """Decode an image file to uint8 [num_channels, height, width]: 3 is RGB, 1 is grey.

    Raises `DataError` with its path where that fails.
    """
    try:
        return _decode(path, num_channels)
    except (OSError, RuntimeError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        reason = re.sub(r"^decode_\w+, \S+, ", "", reason)  # torchvision's own name and line
        raise DataError(f"image {path} cannot be read ({reason}); mend or remove it") from None


def _decode(path: str, num_channels: int) -> torch.Tensor:
    if Path(path).suffix.lower() in {".jpg", ".jpeg", ".png"}:
        # Takes a second to import, in the training process, which reads some images before loader processes start.
        from torchvision.io import ImageReadMode, decode_image

        mode = ImageReadMode.RGB if num_channels == 3 else ImageReadMode.GRAY
        pixels: torch.Tensor = decode_image(path, mode=mode, apply_exif_orientation=True)
        return pixels
    with Image.open(path) as image:  # the formats that torchvision does not decode
        return _to_tensor(image.convert("RGB" if num_channels == 3 else "L"))


def _to_tensor(image: Image.Image) -> torch.Tensor:
    from torchvision.transforms.v2 import functional as image_functional

    pixels: torch.Tensor = image_functional.pil_to_tensor(image)
    return pixels


def _label_out_of_range(sample: str, label: int, num_classes: int) -> str:
    return f"{sample} has label {label}, outside 0 to {num_classes - 1}, the numbers of its {num_classes} classes"


SOURCES: dict[str, Callable[[str | None], dict[str, Source]]] = {
    "digits": _open_digits,
    "cifar10": _open_cifar10,
    "imagefolder": _open_image_folder,
}
