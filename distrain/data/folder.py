"""Owns image folders: a folder a split, in it a folder a class, in it the images. It reads names alone, no image."""

import os
from dataclasses import dataclass
from pathlib import Path

from distrain.errors import DataError

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
VALIDATION_NAMES = ("val", "valid", "validation", "test")


@dataclass(frozen=True)
class FolderSplit:
    """One split's images: `paths[i]` belongs to class `classes[labels[i]]`."""

    classes: tuple[str, ...]
    paths: tuple[str, ...]
    labels: tuple[int, ...]


def scan_image_folder(root: str | None) -> dict[str, FolderSplit]:
    """List the images of `root`/train and `root`/val (or valid, validation, test), sorted by class and name.

    Both splits number their classes as train does. Raises `DataError` where a folder or its classes are missing, or
    where the validation split has a class that train lacks.
    """
    if root is None:
        raise DataError("the recipe reads an image folder and none was given; name it with --data DIR")
    base = Path(root)
    if not base.is_dir():
        raise DataError(f"data folder {root} does not exist")
    validation = next((name for name in VALIDATION_NAMES if (base / name).is_dir()), None)
    if not (base / "train").is_dir() or validation is None:
        found = ", ".join(sorted(entry.name for entry in base.iterdir() if entry.is_dir())) or "no folder"
        raise DataError(
            f"data folder {root} must hold train/ and val/ (or test/), a folder a class in each; has {found}"
        )
    train = _scan_split(base / "train", None)
    return {"train": train, "val": _scan_split(base / validation, train.classes)}


def _scan_split(folder: Path, classes: tuple[str, ...] | None) -> FolderSplit:
    found = tuple(sorted(e.name for e in os.scandir(folder) if e.is_dir() and not e.name.startswith(".")))
    if not found:
        raise DataError(f"{folder} has no class folders; put the images of each class into a folder of its own")
    classes = classes or found
    if unknown := [name for name in found if name not in classes]:
        raise DataError(f"{folder} has class {unknown[0]!r}, which train lacks; the model could not learn it")
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        images = images_below(folder / name) if name in found else []
        paths += images
        labels += [label] * len(images)
    if not paths:
        kinds = ", ".join(sorted(IMAGE_SUFFIXES))
        raise DataError(f"{folder} has class folders and no image in them; images end in {kinds}")
    return FolderSplit(classes, tuple(paths), tuple(labels))


def images_below(folder: Path) -> list[str]:
    """Return the paths of all images below `folder`, at any depth, sorted."""
    return sorted(
        os.path.join(parent, name)  # noqa: PTH118 - Path objects for a million files take seconds
        for parent, _, names in os.walk(folder, followlinks=True)
        for name in names
        if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122
    )
