"""Opens a recipe's sources by name, and chooses the training and validation samples."""

from collections.abc import Callable
from importlib import resources
from typing import Any

import numpy as np
import torch

from distrain.config import Data
from distrain.config.user_code import find_refusal, is_reference, load_reference
from distrain.data.layout.checks import check_target, may_be_packed, missing_validation
from distrain.data.layout.image_folder import LABEL_ENDING, scan_image_folder
from distrain.data.layout.manifest import read_manifest
from distrain.data.packing.format import is_packed
from distrain.data.sources.arrays import read_tensors
from distrain.data.sources.base import DatasetSource, Source, TensorSource
from distrain.data.sources.concat import concat
from distrain.data.sources.files import FileSource, open_files
from distrain.data.sources.masks import open_mask_folder
from distrain.data.sources.packed import PackedSource, open_packed
from distrain.data.sources.split import draw, split_off
from distrain.data.sources.stream import is_stream, open_stream
from distrain.data.sources.torchvision import PREFIX, open_cifar10, open_torchvision
from distrain.errors import DataError, RecipeError
from distrain.messages import nearest
from distrain.system.exits import place_of_code


def open_sources(config: Data) -> dict[str, Source]:
    """Open the `train` split of a recipe's data, including what `data.more` adds, and the `val` split.

    There is no `val` where no source has one, and where `data.val_fraction` splits it off train. Raises a
    `UserError` where the data is not available.
    """
    parts = []
    if not any(is_reference(part.source) for part in config.parts):
        _check_not_a_stream(config)
    for part in config.parts:
        opened = (
            open_packed(part) if may_be_packed(part.source) and is_packed(part.path) else _opener(part.source)(part)
        )
        check_target(part, gives=opened["train"].target)
        if config.decode_size is not None and not isinstance(opened["train"], FileSource | PackedSource):
            raise RecipeError(
                f"data.decode_size={config.decode_size} is for JPEGs in files, and data.source={part.source} has none; "
                "remove it"
            )
        parts.append(opened)
    return concat(parts)


def choose_samples(sources: dict[str, Source], config: Data, *, seed: int) -> dict[str, Source]:
    """Return the `train` and the `val` samples that a recipe requests, drawn by the seed.

    The validation samples are split off where `data.val_fraction` says so; then both splits are reduced to
    `data.train_samples` and `data.val_samples`.
    """
    if config.val_fraction is not None:
        sources = split_off(sources["train"], config.val_fraction, seed=seed)
    elif "val" not in sources:
        raise missing_validation(config)
    counts = {"train": config.train_samples, "val": config.val_samples}
    return {split: draw(sources[split], count, seed=seed) for split, count in counts.items()}


def _opener(name: str) -> "Opener":
    if is_reference(name):
        return _open_user_dataset
    if name.startswith(PREFIX):
        return open_torchvision
    if name not in SOURCES:
        hint = nearest(name, SOURCES, count=1)
        hint = hint or f"; use {', '.join(SOURCES)}, torchvision.NAME or package.module:factory"
        raise RecipeError(f"unknown data.source {name!r}{hint}")
    return SOURCES[name]


def _open_user_dataset(config: Data) -> dict[str, Source]:
    factory = load_reference(config.source, key="data.source")
    sources: dict[str, Source] = {}
    for split in config.splits:
        arguments = {"split": split, "path": config.path, **config.arguments}
        if (refusal := find_refusal(factory, arguments)) is not None:
            raise RecipeError(f"data.source={config.source} with split, path and data.arguments: {refusal}")
        dataset = factory(**arguments)
        if dataset is not None:
            sources[split] = _open_dataset(dataset, config, split=split)
    if "train" not in sources:
        raise DataError(f"data.source={config.source} returns None for split='train'; return a dataset")
    return sources


def _open_dataset(dataset: Any, config: Data, *, split: str) -> Source:
    check_target(config, gives=getattr(dataset, "target", "class"))
    if is_stream(dataset):
        if split == "train" and config.train_samples is not None:
            raise RecipeError(
                f"data.train_samples={config.train_samples} are drawn from all samples, and {config.source} is a "
                f"stream; use data.samples_per_epoch to read its first samples"
            )
        num_samples = config.samples_per_epoch if split == "train" else config.val_samples
        dataset = open_stream(dataset, name=config.source, split=split, num_samples=num_samples)
    elif split == "train":
        _check_not_a_stream(config)
    known = getattr(dataset, "targets", None)  # the name in torchvision's datasets
    try:
        targets = None if known is None else torch.as_tensor(known)
    except (TypeError, ValueError, RuntimeError):
        raise DataError(
            f"data.source={config.source}: the dataset's `targets` are not numbers ({known!r:.60})"
            f"{place_of_code(type(dataset))}; use the targets of the samples, or remove them"
        ) from None
    return DatasetSource(dataset, name=config.source, targets=targets, arguments=str(config.arguments or ""))


def _check_not_a_stream(config: Data) -> None:
    if config.samples_per_epoch is not None:
        raise RecipeError(
            f"data.samples_per_epoch={config.samples_per_epoch} is for streams, but data.source={config.source} is "
            f"not one; use data.train_samples to train on fewer samples"
        )


def _open_digits(config: Data) -> dict[str, Source]:
    """Open the handwritten digits that ship with distrain; every fifth image is for validation.

    Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998,
    https://doi.org/10.24432/C50P49, licensed CC BY 4.0: the 1,797 images of its test part, 8x8, 0 to 16.
    """
    if config.path is not None:
        raise DataError(f"the digits ship with distrain, so --data {config.path} would be ignored; remove it")
    with resources.as_file(resources.files("distrain") / "data" / "digits.npz") as file, np.load(file) as arrays:
        ink, labels = arrays["images"], arrays["labels"]
    images = torch.from_numpy(np.round(ink * (255 / 16)).astype(np.uint8)).unsqueeze(1)  # [n, 1, 8, 8]
    is_val = torch.arange(len(images)) % 5 == 4
    targets = torch.from_numpy(labels.astype(np.int64))
    names = [str(digit) for digit in range(10)]
    return {
        "train": TensorSource(images[~is_val], targets[~is_val], names),
        "val": TensorSource(images[is_val], targets[is_val], names),
    }


def _open_image_folder(config: Data) -> dict[str, Source]:
    return open_files(scan_image_folder(config.path, splits=config.splits), config)


def _open_label_folders(config: Data) -> dict[str, Source]:
    found = scan_image_folder(config.path, splits=config.splits, ending=LABEL_ENDING)
    return open_files(found, config)


def _open_manifest(config: Data) -> dict[str, Source]:
    return open_files(read_manifest(config), config)


Opener = Callable[[Data], dict[str, Source]]

SOURCES: dict[str, Opener] = {
    "digits": _open_digits,
    "cifar10": open_cifar10,
    "imagefolder": _open_image_folder,
    "labelfolders": _open_label_folders,
    "manifest": _open_manifest,
    "maskfolder": open_mask_folder,
    "packed": open_packed,
    "tensors": read_tensors,
}
