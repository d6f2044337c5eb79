"""Lists image folders as training reads them, and the files that it does not read."""

from pathlib import Path

from distrain.config.data import Data
from distrain.data.inspection.scan import WHOLE, Listing
from distrain.data.inspection.tables import list_manifest, list_pack
from distrain.data.layout.image_folder import LABEL_ENDING, VALIDATION_NAMES
from distrain.data.layout.walk import Walk
from distrain.data.packing.format import is_packed
from distrain.errors import DataError


def list_data(config: Data) -> Listing:
    """List an image folder, a packed dataset or a manifest; raises `DataError` for anything else."""
    folder = Path(str(config.path))
    if is_packed(folder):
        return list_pack(folder)
    if config.source == "manifest":
        return list_manifest(config)
    if config.source not in ("imagefolder", "labelfolders"):
        raise DataError(
            f"data.source={config.source} cannot be inspected; use imagefolder, labelfolders, manifest or a packed "
            f"dataset"
        )
    return list_folder(folder, ending=LABEL_ENDING if config.source == "labelfolders" else "")


def list_folder(folder: Path, *, ending: str = "") -> Listing:
    """List an image folder: train/ and val/ with a folder for each class, or class folders alone.

    A class has the name of its folder without `ending`; folders without that ending are not classes. Images are the
    files that training reads; folders in class folders belong to the class. Raises `DataError` where `folder` is
    missing, not a folder, or has no class folders.
    """
    if not folder.is_dir():
        raise DataError(f"data folder {folder} {'is a file' if folder.exists() else 'does not exist'}")
    walk = Walk(folder)
    folders, files = walk.list_folder(folder)
    splits = [name for name in ("train", *VALIDATION_NAMES) if name in folders]
    has_splits = "train" in splits or (bool(splits) and len(splits) == len(folders))
    if not folders:
        raise DataError(f"data folder {folder} has no folders; put the images of each class into their own folder")
    if not has_splits:
        return _list_splits(folder, walk, {WHOLE: (folders, files)}, ending)
    listing = _list_splits(folder, walk, {name: walk.list_folder(folder / name) for name in splits}, ending)
    listing.stray_folders += [name for name in folders if name not in splits]
    listing.stray_files += files
    return listing


def _list_splits(root: Path, walk: Walk, found: dict[str, tuple[list[str], list[str]]], ending: str) -> Listing:
    """List the splits; `found` has the names of the folders in each, and of the files beside them."""
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


def _list_class(listing: Listing, walk: Walk, root: str, *, split: int, group: int) -> None:
    """Add the files of one class, at any depth."""
    for folder in walk.below(listing.absolute(root)):
        where = listing.relative(folder.path)
        names = sorted(image.name for image in folder.images)
        for name in names:
            listing.paths.append(f"{where}/{name}")
            listing.split_of.append(split)
            listing.group_of.append(group)
        for path in sorted(folder.others):
            listing.others.append(listing.relative(path))
        if where != root and (names or not folder.has_folders):
            listing.nested[where] = len(names)
