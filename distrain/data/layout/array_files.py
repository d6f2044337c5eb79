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
    """Return the file that a recipe names; raises `DataError` where it is not there or of no known kind."""
    if config.path is None:
        raise DataError(f"the recipe reads arrays and no file was given; name it with --data: {FORM}")
    path = Path(config.path)
    if not path.is_file():
        raise DataError(f"array file {path} {'is no file' if path.exists() else 'does not exist'}; it is {FORM}")
    if path.suffix.lower() not in {".npz", ".pt", ".safetensors"}:
        raise DataError(f"array file {path} has a name that tells no format; it is {FORM}")
    return path


def names_in(path: Path) -> set[str] | None:
    """Return the names of the arrays in a file, None where only torch can read them: in a .pt file."""
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
    """Return what stands before `images` and `labels` in the names of each split's arrays.

    `images` and `labels` alone are training samples. Raises `DataError` where images to train on or labels are lacking.
    """
    found: dict[Split, str] = {}
    known = set(names)
    train = next((prefix for prefix in ("train_", "") if f"{prefix}images" in known), None)
    if train is None:
        held = ", ".join(sorted(map(str, known))) or "nothing"
        raise DataError(f"array file {path} has no train_images; it holds {held}")
    found["train"] = train
    validation = next((f"{name}_" for name in VALIDATION_NAMES if f"{name}_images" in known), None)
    if validation is not None and "val" in config.splits:
        found["val"] = validation
    for prefix in found.values():
        if f"{prefix}labels" not in known:
            raise DataError(f"array file {path} has {prefix}images and no {prefix}labels")
    return found


def unreadable(path: Path, error: Exception) -> DataError:
    """Return the error of a file that is not what its name says."""
    reason = first_line(error)
    return DataError(f"array file {path} cannot be read ({reason}); write it again")
