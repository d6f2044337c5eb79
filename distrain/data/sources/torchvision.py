"""Opens torchvision's classification datasets, and names their classes."""

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distrain.config.data import Data, Split
from distrain.data.layout.image_folder import scan_image_folder
from distrain.data.sources.base import DatasetSource, Source, TensorSource
from distrain.data.sources.decoders import to_rgb
from distrain.data.sources.files import open_files
from distrain.errors import DataError, RecipeError
from distrain.messages import first_line, nearest

CACHE = Path("~/.cache/distrain").expanduser()
PREFIX = "torchvision."

_TRAIN: tuple[dict[str, Any], dict[str, Any]] = ({"train": True}, {"train": False})
_VAL: tuple[dict[str, Any], dict[str, Any]] = ({"split": "train"}, {"split": "val"})
_TEST: tuple[dict[str, Any], dict[str, Any]] = ({"split": "train"}, {"split": "test"})

DATASETS: dict[str, tuple[dict[str, Any], dict[str, Any] | None]] = {
    # The arguments of the training and of the validation split; None where all samples are for training.
    "CIFAR10": _TRAIN,
    "CIFAR100": _TRAIN,
    "Caltech101": ({}, None),
    "Caltech256": ({}, None),
    "Country211": ({"split": "train"}, {"split": "valid"}),
    "DTD": _VAL,
    "EMNIST": ({"split": "balanced", "train": True}, {"split": "balanced", "train": False}),
    "EuroSAT": ({}, None),
    "FER2013": ({"split": "train"}, None),  # the labels of its test split are not public
    "FGVCAircraft": _VAL,
    "FakeData": ({"size": 1000}, {"size": 200, "random_offset": 1_000_000}),
    "FashionMNIST": _TRAIN,
    "Flowers102": _VAL,
    "Food101": _TEST,
    "GTSRB": _TEST,
    "ImageNet": _VAL,
    "Imagenette": _VAL,
    "KMNIST": _TRAIN,
    "MNIST": _TRAIN,
    "Omniglot": ({"background": True}, None),  # its other split has other characters
    "OxfordIIITPet": ({"split": "trainval"}, {"split": "test"}),
    "PCAM": _VAL,
    "Places365": ({"split": "train-standard"}, {"split": "val"}),
    "QMNIST": _TRAIN,
    "RenderedSST2": _VAL,
    "SEMEION": ({}, None),
    "STL10": _TEST,
    "SUN397": ({}, None),
    "SVHN": _TEST,
    "StanfordCars": _TEST,
    "USPS": _TRAIN,
}
_NUM_CLASSES = {"FER2013": 7, "GTSRB": 43, "PCAM": 2, "SEMEION": 10, "SVHN": 10, "USPS": 10}  # without class names
_NOT_DOWNLOADED = {"FER2013", "ImageNet"}
_NOT_IN_ONE_MODE = {"Caltech101", "Caltech256"}  # some of their images are grey, most are not


def open_torchvision(config: Data) -> dict[str, Source]:
    """Open `torchvision.NAME` from torchvision's files below `config.path`, or download them to the cache."""
    name = config.source.removeprefix(PREFIX)
    if name not in DATASETS:
        hint = nearest(config.source, [f"{PREFIX}{known}" for known in DATASETS], count=1, cutoff=0.8)
        hint = hint or f"; use {PREFIX} and one of {', '.join(DATASETS)}"
        raise RecipeError(f"data.source={config.source} is not a dataset of images and their classes{hint}")
    arguments = dict(zip(("train", "val"), DATASETS[name], strict=True))
    sources: dict[str, Source] = {}
    for split in config.splits:
        split_arguments = arguments[split]
        if split_arguments is not None:
            dataset = _open(name, {**split_arguments, **config.arguments}, config)
            sources[split] = _in_memory(name, dataset) or _read(name, dataset, split, config)
    return sources


def open_cifar10(config: Data) -> dict[str, Source]:
    """Open CIFAR-10: an image folder, or torchvision's files below `config.path`, downloaded to the cache if None."""
    path = config.path
    if path is not None and (Path(path) / "train").is_dir():
        return open_files(scan_image_folder(path, splits=config.splits), config)
    if path is not None and not (Path(path) / "cifar-10-batches-py").is_dir():
        raise DataError(f"data folder {path} has neither train/ and test/ nor torchvision's cifar-10-batches-py/")
    return open_torchvision(config.model_copy(update={"source": f"{PREFIX}CIFAR10"}))


def _open(name: str, arguments: dict[str, Any], config: Data) -> Any:
    from torchvision import datasets  # takes a second to import

    if name == "FakeData":
        if config.path is not None:
            raise DataError(f"FakeData is generated, so --data {config.path} would be ignored; remove it")
        return _construct(datasets.FakeData, arguments, name)
    root = Path(config.path) if config.path is not None else CACHE / name.lower()
    if config.path is None and name in _NOT_DOWNLOADED:
        raise DataError(f"torchvision does not download {name}; pass the folder of its files with --data DIR")
    if name not in _NOT_DOWNLOADED:
        arguments = {"download": config.path is None, **arguments}
    if name in _NOT_IN_ONE_MODE:
        arguments = {"transform": to_rgb, **arguments}
    if config.path is None:
        root.mkdir(parents=True, exist_ok=True)
    return _construct(getattr(datasets, name), {"root": str(root), **arguments}, name)


def _construct(dataset: Any, arguments: dict[str, Any], name: str) -> Any:
    known = {key for kind in dataset.__mro__ for key in inspect.signature(kind.__init__).parameters}
    if unknown := sorted(set(arguments) - known - {"download"}):
        raise RecipeError(f"data.arguments: {PREFIX}{name} has no {unknown[0]!r}")
    if "download" not in known:
        arguments = {key: value for key, value in arguments.items() if key != "download"}
    try:
        return dataset(**arguments)
    except ImportError as error:
        needed = error.name or str(error)
        raise DataError(f"torchvision's {name} needs the package {needed}; install it: pip install {needed}") from None
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        reason = first_line(error)
        if "root" not in arguments:
            raise DataError(f"{name} does not accept data.arguments {arguments} ({reason}); fix them") from None
        where = f"{arguments['root']}{' or the network' if arguments.get('download') else ''}"
        raise DataError(f"{name} is not available from {where} ({reason}); pass a folder with --data DIR") from None


def _in_memory(name: str, dataset: Any) -> Source | None:
    """Return a dataset that torchvision holds in memory as a `TensorSource`; None for one read image by image."""
    data = getattr(dataset, "data", None)
    images = torch.from_numpy(data) if isinstance(data, np.ndarray) else data
    targets = _known_targets(dataset)
    if targets is None or not isinstance(images, torch.Tensor) or images.dtype != torch.uint8:
        return None
    if images.ndim == 3:
        images = images.unsqueeze(1)
    elif images.shape[1] not in (1, 3):
        images = images.permute(0, 3, 1, 2)
    return TensorSource(images.contiguous(), targets, _class_names(name, dataset))


def _read(name: str, dataset: Any, split: Split, config: Data) -> Source:
    dataset.classes = _class_names(name, dataset)
    arguments = str({**config.arguments, "split": split})
    return DatasetSource(dataset, name=f"{PREFIX}{name}", targets=_known_targets(dataset), arguments=arguments)


def _known_targets(dataset: Any) -> torch.Tensor | None:
    """Return the classes int64 [n] of all samples where a dataset has them under one of torchvision's names."""
    for attribute in ("targets", "labels", "_labels", "y"):
        found = getattr(dataset, attribute, None)
        if isinstance(found, list | np.ndarray | torch.Tensor) and len(found) == len(dataset):
            targets = torch.as_tensor(found)
            if targets.ndim == 1 and not targets.is_floating_point():
                return targets.long()
    return None


def _class_names(name: str, dataset: Any) -> list[str]:
    if name in _NUM_CLASSES:
        return [str(number) for number in range(_NUM_CLASSES[name])]
    if name == "FakeData":
        return [str(number) for number in range(dataset.num_classes)]
    attributes = ("classes", "categories", "_characters")
    names = next(getattr(dataset, attribute) for attribute in attributes if hasattr(dataset, attribute))
    return [found if isinstance(found, str) else ", ".join(found) for found in names]
