"""Owns image folders: a folder a split, in it a folder a class, in it the images. It reads names alone, no image."""

import os
from collections.abc import Sequence
from pathlib import Path

from distrain.data.listing import Listing
from distrain.errors import DataError
from distrain.recipe.data import Split

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
VALIDATION_NAMES = ("val", "valid", "validation", "test")
LABEL_ENDING = "_image"  # what the class folders of `labelfolders` end in


def scan_image_folder(
    root: str | None, *, splits: Sequence[Split] = ("train", "val"), ending: str = ""
) -> dict[Split, Listing]:
    """List the images of `root`/train and `root`/val (or valid, validation, test), sorted by class and name.

    Class folders right below `root` are all training images. A class is named by its folder, less `ending`, without
    which no folder is one. Both splits number their classes as train does; val is left out where there is none. Raises
    `DataError` where a folder or its classes are missing, or where the validation split has a class that train lacks.
    """
    if root is None:
        raise DataError("the recipe reads an image folder and none was given; name it with --data DIR")
    base = Path(root)
    if not base.is_dir():
        if not base.exists():
            raise DataError(f"data folder {root} does not exist")
        raise DataError(f"{root} is not a folder; a table of images is read with --set data.source=manifest")
    validation = next((name for name in VALIDATION_NAMES if (base / name).is_dir()), None)
    if not (base / "train").is_dir():
        if validation is not None:
            raise DataError(f"data folder {root} has {validation}/ and no train/; it must hold train/ and val/")
        return {"train": _scan_split(base, None, ending)}
    train = _scan_split(base / "train", None, ending)
    if validation is None or "val" not in splits:
        return {"train": train}
    return {"train": train, "val": _scan_split(base / validation, train.classes, ending)}


def _scan_split(folder: Path, classes: tuple[str, ...] | None, ending: str) -> Listing:
    names = [e.name for e in os.scandir(folder) if e.is_dir() and not e.name.startswith(".")]
    found = {name.removesuffix(ending): name for name in names if name.endswith(ending) and name != ending}
    if not found:
        named = f"CLASS{ending}, " if ending else ""
        raise DataError(
            f"{folder} has no class folders; put the images of each class into a folder of its own, {named}"
            f"below train/ and val/"
        )
    classes = classes or tuple(sorted(found))
    if unknown := sorted(set(found) - set(classes)):
        raise DataError(f"{folder} has class {unknown[0]!r}, which train lacks; the model could not learn it")
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        images = images_below(folder / found[name]) if name in found else []
        paths += images
        labels += [label] * len(images)
    if not paths:
        kinds = ", ".join(sorted(IMAGE_SUFFIXES))
        raise DataError(f"{folder} has class folders and no image in them; images end in {kinds}")
    return Listing(classes, tuple(paths), tuple(labels))


def images_below(folder: Path) -> list[str]:
    """Return the paths of all images below `folder`, at any depth, sorted."""
    return sorted(
        os.path.join(parent, name)  # noqa: PTH118 - Path objects for a million files take seconds
        for parent, _, names in os.walk(folder, followlinks=True)
        for name in names
        if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122
    )
