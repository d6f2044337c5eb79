"""Applies the rules of `distrain data check`: which findings are errors, warnings or notes."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass
from typing import Literal

import numpy as np

from distrain.data.inspection.image_table import ImageTable, Indices
from distrain.data.inspection.probe_image import BROKEN, ImageFlag
from distrain.data.inspection.scan import Listing
from distrain.data.layout.image_folder import TEST
from distrain.data.layout.walk import IMAGE_SUFFIXES
from distrain.data.sources.decoders import MAX_PIXELS
from distrain.messages import counted

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")

TINY_SIDE = 32  # pixels; half the median side where all images of a dataset are small, such as CIFAR's
HUGE_PIXELS = 50_000_000
EXTREME_RATIO = 5
IMBALANCE = 10
FEW_IMAGES = 10


@dataclass(frozen=True)
class Item:
    """The subject of a finding: a path, several that belong together, or a class; and a text on it."""

    paths: tuple[str, ...]
    text: str = ""


@dataclass(frozen=True)
class Finding:
    """One kind of problem: `message` says what it is and why it matters, `advice` what to do."""

    severity: Severity
    kind: str
    message: str
    advice: str
    items: "tuple[Item, ...] | ImageItems" = ()


@dataclass(frozen=True)
class ImageItems:
    """The items of a finding on many images, created on iteration: there may be a million."""

    listing: Listing
    indices: Indices
    text: Callable[[int], str]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.indices)

    def __iter__(self) -> Iterator[Item]:
        """Yield one item per image."""
        for index in self.indices.tolist():
            yield Item((self.listing.paths[index],), self.text(index))


def run_checks(listing: Listing, images: ImageTable, others: ImageTable) -> list[Finding]:
    """Return all findings on the listed data, errors first."""
    found = [
        *_splits(listing),
        *_broken(listing, images),
        *_classes(listing),
        *_duplicates(listing, images),
        *_layout(listing, others),
        *_balance(listing, images),
        *_sizes(listing, images),
        *_modes(listing, images),
    ]
    return sorted(found, key=lambda finding: SEVERITIES.index(finding.severity))


def report_damage(damages: list[str]) -> list[Finding]:
    """Return a finding on the damaged shards of a packed dataset, described by `damages`; empty without any."""
    if not damages:
        return []
    message = f"{_counted(damages, 'damaged shard')}: training would read other data than was packed"
    advice = "copy the pack again from an intact copy, or run distrain data pack ... --force"
    return [Finding("error", "damaged-shard", message, advice, tuple(Item((text,)) for text in damages))]


def _splits(listing: Listing) -> Iterator[Finding]:
    if listing.is_single_split:
        yield Finding(
            "note",
            "single-folder",
            "class folders without train/ and val/; training needs both, or data.val_fraction",
            "move some images of each class, for example a tenth, to val/CLASS and the rest to train/CLASS",
        )
        return
    if "train" not in listing.splits:
        yield Finding(
            "error", "no-train", "there is no train/ folder", "rename the folder with training images to train/"
        )
    if listing.validation is None and listing.form == "folders":
        message = "there is no validation folder: val/, valid/, validation/ or test/"
        yield Finding("error", "no-validation", message, "move some of each class, for example a tenth, to val/CLASS")
    elif listing.validation is None:
        message = "there are no validation samples; training needs some, or data.val_fraction"
        yield Finding("note", "no-validation", message, "train with --set data.val_fraction=0.2")
    if listing.validation == TEST and listing.form == "folders":
        advice = "nothing if that is intended; else rename it, or create val/ from some images of train/"
        yield Finding("note", "test-validates", "there is no val/: training validates on test/", advice)
    counts, images = listing.counts(), listing.num_images()
    for split in listing.splits:
        if not images[split]:
            what = "no images in its class folders" if counts[split] else "no class folders"
            suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
            advice = f"add a folder for each class, with its images, whose names end in {suffixes}"
            yield Finding("error", "empty-split", f"{listing.name_split(split)} has {what}", advice)
    if unused := [Item((f"{name}/",)) for name in listing.splits if name not in {"train", listing.validation}]:
        message = f"{_counted(unused, 'more split')} not used in training, which validates on {listing.validation}/"
        yield Finding("note", "unused-split", message, "nothing; they were checked, too", (*unused,))
    for note in listing.notes:
        yield Finding("note", "reading", note, "nothing if that is intended")


def _broken(listing: Listing, images: ImageTable) -> Iterator[Finding]:
    kinds: list[tuple[Severity, str, ImageFlag, str, str]] = [
        (
            "error",
            "unreadable",
            ImageFlag.UNREADABLE,
            "that cannot be decoded; training stops at them",
            "fix or remove them",
        ),
        (
            "error",
            "not-an-image",
            ImageFlag.NOT_AN_IMAGE,
            "with the suffix of an image that are not images",
            "remove them",
        ),
        (
            "warning",
            "wrong-suffix",
            ImageFlag.MISNAMED,
            "with the suffix of another format; training reads them, other programs may not",
            "rename them, or save them again",
        ),
    ]
    for severity, kind, flag, text, advice in kinds:
        if items := _items(listing, images.with_flag(flag), lambda index: images.reasons.get(index, "")):
            yield Finding(severity, kind, f"{_counted(items, 'file')} {text}", advice, items)


def _classes(listing: Listing) -> Iterator[Finding]:
    counts = listing.counts()
    empty = [
        Item((listing.name_class(s, name),)) for s in listing.splits for name, count in counts[s].items() if not count
    ]
    if empty:
        message = f"{_counted(empty, 'class folder')} without an image; training counts the class anyway"
        yield Finding("warning", "empty-class", message, "add images, or remove the folder from every split", (*empty,))
    if listing.is_single_split or "train" not in listing.splits:
        return
    train = listing.name_split("train")
    for split in listing.splits[1:]:
        trained, here, where = counts["train"], counts[split], listing.name_split(split)
        is_used = split == listing.validation
        if extra := [Item((listing.name_class(split, name),)) for name in here if name not in trained]:
            message = f"{_counted(extra, 'class', 'classes')} in {where} but not in {train}; a model cannot learn them"
            advice = f"add their images to {train}, or remove them"
            yield Finding("error" if is_used else "warning", "extra-class", message, advice, (*extra,))
        if missing := [Item((listing.name_class("train", name),)) for name in trained if name not in here]:
            what = "a folder" if listing.form == "folders" else "an image"
            message = f"{_counted(missing, 'class', 'classes')} of {train} without {what} in {where}: never evaluated"
            yield Finding("warning", "missing-class", message, f"add some of their images to {where}", (*missing,))


def _duplicates(listing: Listing, images: ImageTable) -> Iterator[Finding]:
    """Sort groups of equal images: in two classes, in two splits (a group may be in both), or neither."""
    contradictory, leaking, repeated = list[Item](), list[Item](), list[Item]()
    for group in images.duplicates():
        item = Item(tuple(listing.paths[int(index)] for index in group))
        has_labels = len({listing.group_of[int(index)] for index in group}) > 1
        has_splits = len({listing.split_of[int(index)] for index in group}) > 1
        if has_labels:
            contradictory.append(item)
        if has_splits:
            leaking.append(item)
        if not has_labels and not has_splits:
            repeated.append(item)
    if contradictory:
        where = "in more than one class" if listing.target == "class" else "more than once, with other targets"
        message = f"{_counted(contradictory, 'image')} {where}: their labels contradict each other"
        advice = "keep each image in the right class, and remove its copies"
        yield Finding("error", "contradictory-label", message, advice, (*contradictory,))
    if leaking:
        message = (
            f"{_counted(leaking, 'image')} in more than one split: the evaluation counts images that were trained on"
        )
        yield Finding("error", "leak", message, f"remove them from {listing.name_split('train')}", (*leaking,))
    if repeated:
        surplus = sum(len(item.paths) - 1 for item in repeated)
        message = (
            f"{_counted(repeated, 'image')} more than once in a split, identical in every pixel; {surplus:,} can go"
        )
        yield Finding("warning", "duplicate", message, "keep one of each", (*repeated,))


def _layout(listing: Listing, others: ImageTable) -> Iterator[Finding]:
    stray_images = [path for path in listing.stray_files if _has_image_suffix(path)]
    if stray_images:
        message = f"{_counted(stray_images, 'image')} beside the class folders; training skips them"
        yield Finding(
            "warning", "stray-image", message, "move them into the folder of their class", _as_items(stray_images)
        )
    indices = others.with_flag(ImageFlag.UNNOTICED)
    if len(indices):
        items = tuple(Item((listing.others[int(i)],), others.reasons[int(i)]) for i in indices)
        message = f"{_counted(items, 'image')} that training skips because of their suffix"
        yield Finding("warning", "unnoticed-image", message, "convert them to .jpg or .png", items)
    if listing.skipped:
        skipped = _counted(listing.skipped, "file or folder", "files and folders")
        message = f"{skipped} skipped: hidden or system files"
        yield Finding("note", "skipped", message, "nothing if that is intended", _as_items(listing.skipped))
    if listing.links:
        message = f"{_counted(listing.links, 'link')} to folders that are read anyway, not followed"
        yield Finding("note", "link", message, "nothing if that is intended", _as_items(listing.links))
    if listing.nested:
        nested = tuple(Item((f"{path}/",), counted(count, "image")) for path, count in sorted(listing.nested.items()))
        message = f"{_counted(nested, 'folder')} inside class folders; their images belong to the class above"
        advice = "nothing if that is intended; else move them beside the class folders"
        yield Finding("warning", "nested-folder", message, advice, nested)
    if listing.stray_folders:
        items = tuple(Item((f"{path}/",)) for path in listing.stray_folders)
        message = f"{_counted(items, 'folder')} beside the splits, neither trained on nor checked"
        yield Finding("warning", "stray-folder", message, "nothing if that is intended", items)
    unnoticed = set(indices.tolist())
    rest = [path for path in listing.stray_files if not _has_image_suffix(path)]
    rest += [path for index, path in enumerate(listing.others) if index not in unnoticed]
    if rest:
        message = (
            f"{_counted(rest, 'file')} that {'is' if len(rest) == 1 else 'are'} not read as images; training skips them"
        )
        yield Finding("note", "stray-file", message, "nothing if that is intended", _as_items(rest))


def _balance(listing: Listing, images: ImageTable) -> Iterator[Finding]:
    """Count the training images that can be read, by class."""
    split = listing.splits.index(listing.training)
    counts = Counter({name: count for name, count in listing.counts()[listing.training].items() if count})
    for index in images.with_flag(BROKEN):
        if listing.split_of[int(index)] == split:
            counts.subtract(listing.classes_of(int(index)))
    name = "the folder" if listing.is_single_split else listing.name_split(listing.training)
    if few := [Item((cls,), counted(count, "image")) for cls, count in counts.items() if count < FEW_IMAGES]:
        message = f"{_counted(few, 'class', 'classes')} with fewer than {FEW_IMAGES} good images in {name}"
        advice = "add images; with so few, start from pretrained weights (model.weights)"
        yield Finding("warning", "small-class", message, advice, (*few,))
    ranked = [(cls, count) for cls, count in counts.most_common() if count > 0]
    if ranked and ranked[0][1] > IMBALANCE * ranked[-1][1]:
        (largest_class, largest), (smallest_class, smallest) = ranked[0], ranked[-1]
        message = (
            f"classes of {name} differ {largest / smallest:.0f}-fold in size: {largest_class} has {largest:,} and "
            f"{smallest_class} has {smallest:,}; a model learns to favour the large ones"
        )
        items = tuple(Item((cls,), counted(count, "image")) for cls, count in (ranked[0], *reversed(ranked[1:])))
        yield Finding("warning", "imbalance", message, "add images to the small classes", items)


def _sizes(listing: Listing, images: ImageTable) -> Iterator[Finding]:
    sizes = images.sizes().astype(np.int64)
    known = np.flatnonzero(sizes.all(axis=1))
    if not len(known):
        return
    shorter, longer = sizes[known].min(axis=1), sizes[known].max(axis=1)
    tiny = min(TINY_SIDE, float(np.median(shorter)) / 2)
    kinds: list[tuple[str, Indices, str, str]] = [
        (
            "tiny",
            known[shorter < tiny],
            f"less than {tiny:g} pixels high or wide",
            "look at them; remove what is broken",
        ),
        (
            "huge",
            known[(shorter * longer > HUGE_PIXELS) & (shorter * longer <= MAX_PIXELS)],
            f"more than {HUGE_PIXELS // 1_000_000} megapixels; each takes long to decode",
            "save them smaller",
        ),
        (
            "extreme-shape",
            known[longer > EXTREME_RATIO * shorter],
            f"more than {EXTREME_RATIO} times as long as wide; a crop shows little of them",
            "look at them; crop them or remove what is not a photograph",
        ),
    ]
    for kind, indices, text, advice in kinds:
        if items := _items(listing, indices, lambda index: f"{sizes[index, 0]}x{sizes[index, 1]}"):
            yield Finding("warning", kind, f"{_counted(items, 'image')} {text}", advice, items)


def _modes(listing: Listing, images: ImageTable) -> Iterator[Finding]:
    fine = "nothing; training reads all images as RGB"
    kinds = [
        (
            "cmyk",
            ImageFlag.CMYK,
            "in CMYK, the colours of print",
            "compare their colours with those of the others in data info",
        ),
        (
            "deep",
            ImageFlag.DEEP,
            "with more than 8 bits per channel",
            "save them with 8 bits if they look wrong in data info",
        ),
        (
            "alpha",
            ImageFlag.ALPHA,
            "with transparency, which training blends with white",
            "save them on another background if that matters",
        ),
        ("palette", ImageFlag.PALETTE, "with a palette", fine),
        ("rotated", ImageFlag.ROTATED, "rotated by an EXIF tag", "nothing; training reads them upright"),
        ("animated", ImageFlag.ANIMATED, "with several frames", "save the important frames as separate images"),
    ]
    for kind, flag, text, advice in kinds:
        if items := _items(listing, images.with_flag(flag)):
            yield Finding("note", kind, f"{_counted(items, 'image')} {text}", advice, items)
    grey = images.with_flag(ImageFlag.GREY)
    num_read = len(listing.paths) - len(images.with_flag(BROKEN))
    if 0 < len(grey) < num_read:
        message = f"{_counted(grey, 'image')} of {num_read:,} without colour among images in colour"
        yield Finding("note", "grey", message, fine, _items(listing, grey))


def _items(listing: Listing, indices: Indices, text: Callable[[int], str] = lambda _: "") -> ImageItems:
    return ImageItems(listing, indices, text)


def _as_items(paths: Iterable[str]) -> tuple[Item, ...]:
    return tuple(Item((path,)) for path in paths)


def _has_image_suffix(path: str) -> bool:
    return path.lower().endswith(tuple(IMAGE_SUFFIXES))


def _counted(items: Sized, one: str, many: str = "") -> str:
    return f"{len(items):,} {one if len(items) == 1 else many or f'{one}s'}"
