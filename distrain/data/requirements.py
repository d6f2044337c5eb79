"""Owns what a recipe's data must be, as far as names and tables tell it: no image is read and no torch imported."""

from collections.abc import Callable, Collection
from pathlib import Path

from distrain.data.arrays import array_file, names_in, prefixes
from distrain.data.folder import LABEL_ENDING, scan_image_folder
from distrain.data.manifest import read_manifest
from distrain.data.packfile import is_packed, read_pack
from distrain.errors import DataError, RecipeError
from distrain.metrics import Target
from distrain.recipe.data import Data, Split
from distrain.references import is_reference

_ANY_TARGET = ("manifest", "packed", "tensors")  # the other sources of ours have classes


def check_requirements(config: Data, *, needs_validation: bool = True) -> None:
    """Raise a `UserError` for data that is not there or not of the form that its source has."""
    splits: list[Collection[Split]] = []
    for part in config.parts:
        if may_be_packed(part.source) and is_packed(part.path):
            splits.append(_check_packed(part))
            continue
        check_target(part)
        if part.path is not None and not Path(part.path).exists():
            raise DataError(f"data {'folder ' if not Path(part.path).suffix else ''}{part.path} does not exist")
        splits.append(_CHECKS[part.source](part) if part.source in _CHECKS else ("train", "val"))
    if needs_validation and config.val_fraction is None and not any("val" in found for found in splits):
        raise missing_validation(config)


def may_be_packed(source: str) -> bool:
    """Whether the path of a source may as well name a packed dataset, which has taken the place of its files."""
    return source != "digits" and not is_reference(source)


def check_target(config: Data, *, gives: Target | None = None) -> None:
    """Raise `RecipeError` where a source does not have the targets that a recipe wants; `gives` are those it has."""
    if gives is None:
        if is_reference(config.source) or config.source in _ANY_TARGET:
            return
        gives = "class"
    if gives != config.target:
        advice = f"take {', '.join(_ANY_TARGET)} or your own factory, or --set data.target={gives}"
        raise RecipeError(f"data.target={config.target}, and data.source={config.source} has target {gives}; {advice}")


def missing_validation(config: Data) -> DataError:
    """Return the error of data that has only samples to train on."""
    form = _VALIDATION.get(config.source, "")
    return DataError(
        f"data {config.path or config.source} has no validation samples; {form}split some off the training samples, "
        f"with --set data.val_fraction=0.2"
    )


def _check_image_folder(config: Data) -> Collection[Split]:
    return scan_image_folder(config.path, splits=config.splits)


def _check_label_folders(config: Data) -> Collection[Split]:
    return scan_image_folder(config.path, splits=config.splits, ending=LABEL_ENDING)


def _check_tensors(config: Data) -> Collection[Split]:
    path = array_file(config)
    names = names_in(path)
    return config.splits if names is None else prefixes(path, names, config)


def _check_packed(config: Data) -> Collection[Split]:
    if config.path is None:
        raise DataError("the recipe reads a packed dataset and none was given; name it with --data DIR")
    pack = read_pack(config.path)
    check_target(config, gives=pack.target)
    return pack.splits.keys() & set(config.splits)


_CHECKS: dict[str, Callable[[Data], Collection[Split]]] = {
    "imagefolder": _check_image_folder,
    "labelfolders": _check_label_folders,
    "manifest": read_manifest,
    "packed": _check_packed,
    "tensors": _check_tensors,
}
_VALIDATION = {
    "imagefolder": "put them below val/ beside train/, or ",
    "labelfolders": "put them below val/ beside train/, or ",
    "manifest": "mark them in a column split, or ",
    "packed": "pack them with it, or ",
    "tensors": "add val_images and val_labels, or ",
}
