"""Checks a recipe's data by file names and tables alone, without reading an image or importing torch."""

from collections.abc import Callable, Collection
from pathlib import Path

from distrain.config.data import Data, Split
from distrain.config.metrics import Target
from distrain.config.user_code import is_reference
from distrain.data.layout.array_files import array_file, names_in, prefixes
from distrain.data.layout.file_list import Listing
from distrain.data.layout.image_folder import LABEL_ENDING, TEST, scan_image_folder
from distrain.data.layout.manifest import read_manifest
from distrain.data.layout.mask_folder import scan_mask_folder
from distrain.data.layout.repeats import find_repeats
from distrain.data.packing.format import is_packed, read_pack
from distrain.errors import DataError, RecipeError
from distrain.system.encoding import printable_name

_DOWNLOADED = ("cifar10",)  # when no path is given
_OWN_TARGETS: dict[Target, str] = {  # of the user's own dataset
    "class": "the names of the classes as `classes`, and with each image the number of its class",
    "labels": "the names of the labels as `classes`, and with each image float32 [labels] of 0 and 1",
    "values": "the names of the values as `classes`, and with each image float32 [values]",
    "mask": "the names of the classes as `classes`, and with each image a mask uint8 [height, width]",
}
_ANY_TARGET = ("manifest", "packed", "tensors")  # the other built-in sources have classes


Checked = tuple[Collection[Split], list[str]]  # the available splits, and notes on them


def check_requirements(config: Data, *, needs_validation: bool = True) -> list[str]:
    """Raise a `UserError` for data that does not exist or is not in the form that its source expects.

    Returns notes, one sentence each, on choices and skipped files that a user may not expect.
    """
    splits: list[Collection[Split]] = []
    notes: list[str] = []
    for part in config.parts:
        if may_be_packed(part.source) and is_packed(part.path):
            splits.append(_check_packed(part)[0])
            continue
        check_target(part)
        if part.path is not None and not Path(part.path).exists():
            raise DataError(f"data {'folder ' if not Path(part.path).suffix else ''}{part.path} does not exist")
        found, part_notes = _CHECKS[part.source](part) if part.source in _CHECKS else (("train", "val"), [])
        splits.append(found)
        notes += part_notes
    if needs_validation and config.val_fraction is None and not any("val" in found for found in splits):
        raise missing_validation(config)
    return notes


def needs_path(config: Data) -> bool:
    """Whether a source reads the user's files but the recipe has no path to them."""
    return any(part.path is None and part.source in _CHECKS and part.source not in _DOWNLOADED for part in config.parts)


def may_be_packed(source: str) -> bool:
    """Whether the path of a source may be that of a packed dataset in place of its files."""
    return source != "digits" and not is_reference(source)


def check_target(config: Data, *, gives: Target | None = None) -> None:
    """Raise `RecipeError` where a source does not have the targets that a recipe needs; `gives` are those it has."""
    if gives is None:
        if is_reference(config.source) or config.source in _ANY_TARGET:
            return
        gives = "mask" if config.source == "maskfolder" else "class"
    if gives != config.target:
        advice = f"use {', '.join(_ANY_TARGET)} or your own factory"
        if is_reference(config.source):
            advice = f'give its dataset `target = "{config.target}"`, {_OWN_TARGETS[config.target]}'
        advice += f", or --set data.target={gives}"
        raise RecipeError(f"data.target={config.target}, but data.source={config.source} has target {gives}; {advice}")


def missing_validation(config: Data) -> DataError:
    """Return the error for data without validation samples."""
    form = _VALIDATION.get(config.source, "")
    return DataError(
        f"data {config.path or config.source} has no validation samples; {form}split some off the training samples, "
        f"with --set data.val_fraction=0.2"
    )


def _check_image_folder(config: Data) -> Checked:
    return _describe(scan_image_folder(config.path, splits=config.splits))


def _check_label_folders(config: Data) -> Checked:
    return _describe(scan_image_folder(config.path, splits=config.splits, ending=LABEL_ENDING))


def _check_cifar10(config: Data) -> Checked:
    """Check CIFAR-10 in image files, which always validates on `test/`."""
    if config.path is None or not (Path(config.path) / "train").is_dir():
        return config.splits, []
    found = scan_image_folder(config.path, splits=config.splits)
    return found, [*found["train"].notes, *find_repeats(found)]


def _check_manifest(config: Data) -> Checked:
    return _describe(read_manifest(config))


def _check_mask_folder(config: Data) -> Checked:
    found = scan_mask_folder(config.path, splits=config.splits)
    return found, [*found["train"].notes]


def _check_tensors(config: Data) -> Checked:
    path = array_file(config)
    names = names_in(path)
    if names is None:
        return config.splits, []
    found = prefixes(path, names, config)
    is_test = found.get("val") == f"{TEST}_"
    return found, [f"{printable_name(str(path))} has no val_images: validating on {TEST}_images"] if is_test else []


def _check_packed(config: Data) -> Checked:
    if config.path is None:
        raise DataError("the recipe reads a packed dataset and none was given; pass it with --data DIR")
    pack = read_pack(config.path)
    check_target(config, gives=pack.target)
    return pack.splits.keys() & set(config.splits), []


def _describe(listings: dict[Split, Listing]) -> Checked:
    return listings, [*(note for listing in listings.values() for note in listing.notes), *find_repeats(listings)]


_CHECKS: dict[str, Callable[[Data], Checked]] = {
    "cifar10": _check_cifar10,
    "imagefolder": _check_image_folder,
    "labelfolders": _check_label_folders,
    "manifest": _check_manifest,
    "maskfolder": _check_mask_folder,
    "packed": _check_packed,
    "tensors": _check_tensors,
}
_VALIDATION = {
    "imagefolder": "put them below val/ beside train/, or ",
    "labelfolders": "put them below val/ beside train/, or ",
    "manifest": "mark them in a column split, or ",
    "maskfolder": "put them below val/ beside train/, or ",
    "packed": "pack them with it, or ",
    "tensors": "add val_images and val_labels, or ",
}
