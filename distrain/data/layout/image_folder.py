"""Lists image folders: a folder for each split, in it one for each class, in it the images. It opens no image."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from distrain.config.data import Split
from distrain.data.layout.file_list import Listing
from distrain.data.layout.walk import IMAGE_SUFFIXES, Walk, images_below
from distrain.errors import DataError
from distrain.system.encoding import printable_name

TEST = "test"
VALIDATION_NAMES = ("val", "valid", "validation", TEST)
LABEL_ENDING = "_image"  # what the class folders of `labelfolders` end in


def scan_image_folder(
    root: str | None, *, splits: Sequence[Split] = ("train", "val"), ending: str = ""
) -> dict[Split, Listing]:
    """List the images of `root`/train and `root`/val (or valid, validation, test), sorted by class and name.

    Class folders directly below `root` are all training images. A class has the name of its folder without `ending`;
    folders without that ending, and what a `Walk` skips, are ignored. Both splits number the classes as train does;
    without validation images there is no val. Raises `DataError` where a folder or its classes are missing, or where
    the validation split has a class that train does not have.
    """
    if root is None:
        raise DataError("the recipe reads an image folder and none was given; pass it with --data DIR")
    base = Path(root)
    if not base.is_dir():
        if not base.exists():
            raise DataError(f"data folder {root} does not exist")
        raise DataError(f"{root} is not a folder; a table of images is read with --set data.source=manifest")
    walk = Walk(base)
    validation = next((name for name in VALIDATION_NAMES if (base / name).is_dir()), None)
    found: dict[Split, Listing] = {}
    if not (base / "train").is_dir():
        if validation is not None:
            raise DataError(f"data folder {root} has {validation}/ but no train/; it must contain train/ and val/")
        found["train"] = _scan_split(walk, base, None, ending)
    else:
        found["train"] = _scan_split(walk, base / "train", None, ending)
        if validation is not None and "val" in splits:
            found["val"] = _scan_split(walk, base / validation, found["train"].classes, ending)
    found["train"] = replace(found["train"], notes=tuple(walk.notes()), may_repeat=walk.may_repeat())
    if "val" in found and validation == TEST:
        found["val"] = replace(found["val"], notes=(f"{printable_name(root)} has no val/: validating on test/",))
    return found


def _scan_split(walk: Walk, folder: Path, classes: tuple[str, ...] | None, ending: str) -> Listing:
    names, _ = walk.list_folder(folder)
    found = {name.removesuffix(ending): name for name in names if name.endswith(ending) and name != ending}
    if not found:
        named = f"CLASS{ending}, " if ending else ""
        raise DataError(
            f"{folder} has no class folders; put the images of each class into their own folder, {named}"
            f"below train/ and val/"
        )
    classes = classes or tuple(sorted(found))
    if unknown := sorted(set(found) - set(classes)):
        raise DataError(f"{folder} has class {unknown[0]!r}, which train does not have; a model cannot learn it")
    walk.begin([folder / name for name in found.values()])
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        images = images_below(folder / found[name], walk) if name in found else []
        paths += images
        labels += [label] * len(images)
    if not paths:
        kinds = ", ".join(sorted(IMAGE_SUFFIXES))
        raise DataError(f"{folder} has class folders but no images in them; the names of images end in {kinds}")
    return Listing(classes, tuple(paths), tuple(labels))
