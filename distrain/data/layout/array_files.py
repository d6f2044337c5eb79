"""Checks the names of files of arrays, and of the arrays in them. It reads no array."""

import zipfile
from collections.abc import Iterable
from pathlib import Path

from distrain.config.data import Data, Split
from distrain.data.layout.image_folder import VALIDATION_NAMES
from distrain.errors import DataError
from distrain.messages import first_line

FORM = "a .npz, .pt or .safetensors file with train_images and train_labels, val_images and val_labels"


def array_file(config: Data) -> Path:
    """Return the file that a recipe names; raises `DataError` where it does not exist or has an unknown format."""
    if config.path is None:
        raise DataError(f"the recipe reads arrays and no file was given; pass it with --data: {FORM}")
    path = Path(config.path)
    if not path.is_file():
        raise DataError(f"array file {path} {'is not a file' if path.exists() else 'does not exist'}; use {FORM}")
    if path.suffix.lower() not in {".npz", ".pt", ".safetensors"}:
        raise DataError(f"array file {path} has an unknown suffix; use {FORM}")
    return path


def names_in(path: Path) -> set[str] | None:
    """Return the names of the arrays in a file, or None for a .pt file, which only torch can read."""
    try:
        if path.suffix.lower() == ".npz":
            with zipfile.ZipFile(path) as archive:
                return {name.removesuffix(".npy") for name in archive.namelist()}
        if path.suffix.lower() == ".safetensors":
            from safetensors import SafetensorError, safe_open

            try:
                with safe_open(path, framework="numpy") as file:
                    return set(file.keys())
            except SafetensorError as error:
                raise unreadable(path, error) from None
    except (OSError, zipfile.BadZipFile) as error:
        raise unreadable(path, error) from None
    return None


def prefixes(path: Path, names: Iterable[str], config: Data) -> dict[Split, str]:
    """Return the prefix of `images` and `labels` in the names of each split's arrays.

    `images` and `labels` alone are training samples. Raises `DataError` where training images or labels are missing.
    """
    found: dict[Split, str] = {}
    known = set(names)
    train = next((prefix for prefix in ("train_", "") if f"{prefix}images" in known), None)
    if train is None:
        names_found = ", ".join(sorted(map(str, known))) or "nothing"
        raise DataError(f"array file {path} has no train_images; it contains {names_found}")
    found["train"] = train
    validation = next((f"{name}_" for name in VALIDATION_NAMES if f"{name}_images" in known), None)
    if validation is not None and "val" in config.splits:
        found["val"] = validation
    for prefix in found.values():
        if f"{prefix}labels" not in known:
            raise DataError(f"array file {path} has {prefix}images but no {prefix}labels")
    return found


def unreadable(path: Path, error: Exception) -> DataError:
    """Return the error for a file whose content does not match its suffix."""
    reason = first_line(error)
    return DataError(f"array file {path} cannot be read ({reason}); write it again")
