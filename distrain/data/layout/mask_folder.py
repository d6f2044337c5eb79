"""Lists pairs of an image and a mask: `images/` and `masks/` with files of the same name. It opens no image."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from distrain.config.data import Split
from distrain.data.layout.image_folder import VALIDATION_NAMES
from distrain.data.layout.walk import Walk, images_below
from distrain.errors import DataError
from distrain.messages import counted
from distrain.system.encoding import printable_name

IMAGES, MASKS, CLASSES = "images", "masks", "classes.txt"
MAX_CLASSES = 255  # the numbers of a byte but 255, which marks pixels that do not count


@dataclass(frozen=True)
class MaskListing:
    """One split: the image `images[i]` has the mask `masks[i]`, whose pixels are the numbers of `classes`."""

    classes: tuple[str, ...]
    images: tuple[str, ...]
    masks: tuple[str, ...]
    notes: tuple[str, ...] = ()


def scan_mask_folder(root: str | None, *, splits: Sequence[Split] = ("train", "val")) -> dict[Split, MaskListing]:
    """List the pairs in `root`/train and `root`/val (or valid, validation, test), sorted by name.

    `images/` and `masks/` directly in `root` are all training samples. `root`/classes.txt has the name of a class on
    each line, in the order of their numbers. Raises `DataError` where something is missing, and for an image without a
    mask or a mask without an image.
    """
    if root is None:
        raise DataError("the recipe reads a folder of images and masks and none was given; pass it with --data DIR")
    base = Path(root)
    if not base.is_dir():
        raise DataError(f"data folder {root} {'is not a folder' if base.exists() else 'does not exist'}")
    classes = _read_classes(base / CLASSES)
    walk = Walk(base)
    found: dict[Split, MaskListing] = {}
    if not (base / "train").is_dir():
        found["train"] = _scan_split(walk, base, classes)
    else:
        found["train"] = _scan_split(walk, base / "train", classes)
        validation = next((name for name in VALIDATION_NAMES if (base / name).is_dir()), None)
        if validation is not None and "val" in splits:
            found["val"] = _scan_split(walk, base / validation, classes)
    return found | {"train": MaskListing(classes, found["train"].images, found["train"].masks, tuple(walk.notes()))}


def _read_classes(file: Path) -> tuple[str, ...]:
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise DataError(
            f"{file} cannot be read ({reason}); write the names of the classes there, one on each line, in the order "
            f"of their numbers in the masks"
        ) from None
    classes = tuple(line for line in lines if line)
    if not 2 <= len(classes) <= MAX_CLASSES or len(set(classes)) < len(classes):
        raise DataError(f"{file} names {counted(len(classes), 'class', 'classes')}; name 2 to {MAX_CLASSES}, each once")
    return classes


def _scan_split(walk: Walk, folder: Path, classes: tuple[str, ...]) -> MaskListing:
    files: dict[str, dict[str, str]] = {}
    for kind in (IMAGES, MASKS):
        if not (folder / kind).is_dir():
            raise DataError(
                f"{folder} has no folder {kind}/; put images in {IMAGES}/, and masks of the same names in {MASKS}/"
            )
        walk.begin([folder / kind])
        files[kind] = {}
        for path in images_below(folder / kind, walk):
            name = str(Path(path).relative_to(folder / kind).with_suffix(""))
            if (other := files[kind].setdefault(name, path)) != path:
                raise DataError(f"{printable_name(other)} and {printable_name(path)} have the same name; rename one")
    images, masks = files[IMAGES], files[MASKS]
    for name in sorted(images.keys() ^ masks.keys()):
        path, missing = (images[name], "mask") if name in images else (masks[name], "image")
        raise DataError(f"{printable_name(path)} has no {missing} of the same name; add it, or remove the file")
    if not images:
        raise DataError(f"{folder / IMAGES} has no images in it")
    names = sorted(images)
    return MaskListing(classes, tuple(images[name] for name in names), tuple(masks[name] for name in names))
