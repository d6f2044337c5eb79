"""Lists image folders as a training reads them, with what it does not read in them."""

from pathlib import Path

from distrain.config.data import Data
from distrain.data.inspection.scan import WHOLE, Listing
from distrain.data.inspection.tables import list_manifest, list_pack
from distrain.data.layout.image_folder import LABEL_ENDING, VALIDATION_NAMES
from distrain.data.layout.walk import Walk
from distrain.data.packing.format import is_packed
from distrain.errors import DataError


def list_data(config: Data) -> Listing:
    """List an image folder, a packed dataset or a manifest; raises `DataError` where `config.path` is none of them."""
    folder = Path(str(config.path))
    if is_packed(folder):
        return list_pack(folder)
    if config.source == "manifest":
        return list_manifest(config)
    if config.source not in ("imagefolder", "labelfolders"):
        raise DataError(
            f"data.source={config.source} is not looked through; use imagefolder, labelfolders, manifest or a packed "
            f"dataset"
        )
    return list_folder(folder, ending=LABEL_ENDING if config.source == "labelfolders" else "")


def list_folder(folder: Path, *, ending: str = "") -> Listing:
    """List an image folder: train/ and val/ with a folder a class in each, or class folders alone.

    A class is named by its folder, less `ending`, without which no folder is one. Images are what a training takes for
    one; folders in class folders belong to the class. Raises `DataError` where the folder is missing, not a folder, or
    holds nothing like it.
    """
    if not folder.is_dir():
        raise DataError(f"data folder {folder} {'is a file' if folder.exists() else 'does not exist'}")
    walk = Walk(folder)
    below, files = walk.list_folder(folder)
    splits = [name for name in ("train", *VALIDATION_NAMES) if name in below]
    has_splits = "train" in splits or (bool(splits) and len(splits) == len(below))
    if not below:
        raise DataError(f"data folder {folder} holds no folder; put the images of each class into one of its own")
    if not has_splits:
        return _list_splits(folder, walk, {WHOLE: (below, files)}, ending)
    listing = _list_splits(folder, walk, {name: walk.list_folder(folder / name) for name in splits}, ending)
    listing.stray_folders += [name for name in below if name not in splits]
    listing.stray_files += files
    return listing


def _list_splits(root: Path, walk: Walk, found: dict[str, tuple[list[str], list[str]]], ending: str) -> Listing:
    """List the splits, of each of which the names of its folders and of the files beside them are known."""
    folders = {
        split: {name.removesuffix(ending): name for name in names if name.endswith(ending) and name != ending}
        for split, (names, _) in found.items()
    }
    classes = tuple(sorted({name for names in folders.values() for name in names}))
    groups = tuple((number,) for number in range(len(classes)))
    listing = Listing(root, tuple(found), classes, {split: tuple(names) for split, names in folders.items()}, groups)
    number = {name: label for label, name in enumerate(classes)}
    for position, (split, (names, files)) in enumerate(found.items()):
        prefix = "" if split == WHOLE else f"{split}/"
        listing.stray_files += [prefix + name for name in files]
        listing.stray_folders += [prefix + name for name in names if name not in folders[split].values()]
        walk.begin([root / f"{prefix}{name}" for name in folders[split].values()])
        for name, folder in folders[split].items():
            _list_class(listing, walk, prefix + folder, split=position, group=number[name])
    listing.skipped += map(listing.relative, [*walk.files, *(f"{path}/" for path in walk.folders)])
    listing.links += map(listing.relative, walk.links)
    return listing


def _list_class(listing: Listing, walk: Walk, top: str, *, split: int, group: int) -> None:
    """Add the files of one class, as deep as a training goes."""
    for folder in walk.below(listing.absolute(top)):
        where = listing.relative(folder.path)
        names = sorted(image.name for image in folder.images)
        for name in names:
            listing.paths.append(f"{where}/{name}")
            listing.split_of.append(split)
            listing.group_of.append(group)
        for path in sorted(folder.others):
            listing.others.append(listing.relative(path))
        if where != top and (names or not folder.has_folders):
            listing.nested[where] = len(names)
