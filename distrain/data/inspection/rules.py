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

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")

TINY_SIDE = 32  # pixels, and half the usual side where a set's images are small themselves, as CIFAR's are
HUGE_PIXELS = 50_000_000
EXTREME_RATIO = 5
IMBALANCE = 10
FEW_IMAGES = 10


@dataclass(frozen=True)
class Item:
    """What a finding is about: a path, several that belong together, or a class; and words on it."""

    paths: tuple[str, ...]
    words: str = ""


@dataclass(frozen=True)
class Finding:
    """One kind of oddity: `message` says what and why it matters, `advice` what to do."""

    severity: Severity
    kind: str
    message: str
    advice: str
    items: "tuple[Item, ...] | ImageItems" = ()


@dataclass(frozen=True)
class ImageItems:
    """The items of a finding on many images, made as they are asked for: they may be all of a million."""

    listing: Listing
    indices: Indices
    words: Callable[[int], str]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.indices)

    def __iter__(self) -> Iterator[Item]:
        """Yield an item an image."""
        for index in self.indices.tolist():
            yield Item((self.listing.paths[index],), self.words(index))


def run_checks(listing: Listing, images: ImageTable, others: ImageTable) -> list[Finding]:
    """Return all findings on a folder that was read, errors first."""
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


def find_damages(damages: list[str]) -> list[Finding]:
    """Return the finding on a packed dataset whose shards are damaged, as `damages` tell; none where there is none."""
    if not damages:
        return []
    message = f"{_number(damages, 'damaged shard')}: what a training reads from them is not what was packed"
    advice = "copy the pack again from where it is whole, or distrain data pack ... --force"
    return [Finding("error", "damaged-shard", message, advice, tuple(Item((words,)) for words in damages))]


def _splits(listing: Listing) -> Iterator[Finding]:
    if listing.is_whole:
        yield Finding(
            "note",
            "single-folder",
            "class folders without train/ and val/; a training needs both, or data.val_fraction",
            "move a part of each class, such as a tenth, to val/CLASS and the rest to train/CLASS",
        )
        return
    if "train" not in listing.splits:
        yield Finding("error", "no-train", "there is no train/ folder", "name the folder to train on train/")
    if listing.validation is None and listing.form == "folders":
        message = "there is no validation folder: val/, valid/, validation/ or test/"
        yield Finding("error", "no-validation", message, "move a part of each class, such as a tenth, to val/CLASS")
    elif listing.validation is None:
        message = "there are no validation samples; a training needs some, or data.val_fraction"
        yield Finding("note", "no-validation", message, "train with --set data.val_fraction=0.2")
    if listing.validation == TEST and listing.form == "folders":
        advice = "nothing if that is meant; else rename it, or make val/ of a part of train/"
        yield Finding("note", "test-validates", "there is no val/: a training validates on test/", advice)
    counts, images = listing.counts(), listing.num_images()
    for split in listing.splits:
        if not images[split]:
            what = "no image in its class folders" if counts[split] else "no class folder"
            suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
            advice = f"put a folder a class into it, in each its images, which end in {suffixes}"
            yield Finding("error", "empty-split", f"{listing.name_split(split)} has {what}", advice)
    if unused := [Item((f"{name}/",)) for name in listing.splits if name not in {"train", listing.validation}]:
        message = f"{_number(unused, 'more split')} that no training uses: it validates on {listing.validation}/"
        yield Finding("note", "unused-split", message, "nothing; they were read and compared all the same", (*unused,))
    for note in listing.notes:
        yield Finding("note", "reading", note, "nothing if that is meant")


def _broken(listing: Listing, images: ImageTable) -> Iterator[Finding]:
    kinds: list[tuple[Severity, str, ImageFlag, str, str]] = [
        (
            "error",
            "unreadable",
            ImageFlag.UNREADABLE,
            "cannot be decoded; a training stops at them",
            "mend or remove them",
        ),
        ("error", "not-an-image", ImageFlag.NOT_AN_IMAGE, "named as images and are none", "remove them"),
        (
            "warning",
            "wrong-suffix",
            ImageFlag.MISNAMED,
            "named as a format that they are not; a training reads them, other programs may not",
            "rename them, or save them again",
        ),
    ]
    for severity, kind, trait, words, advice in kinds:
        if items := _items(listing, images.having(trait), lambda index: images.reasons.get(index, "")):
            yield Finding(severity, kind, f"{_number(items, 'file')} {words}", advice, items)


def _classes(listing: Listing) -> Iterator[Finding]:
    counts = listing.counts()
    empty = [
        Item((listing.name_class(s, name),)) for s in listing.splits for name, count in counts[s].items() if not count
    ]
    if empty:
        message = f"{_number(empty, 'class folder')} without an image; a training counts the class all the same"
        yield Finding("warning", "empty-class", message, "add images, or remove the folder from every split", (*empty,))
    if listing.is_whole or "train" not in listing.splits:
        return
    train = listing.name_split("train")
    for split in listing.splits[1:]:
        trained, here, place = counts["train"], counts[split], listing.name_split(split)
        is_used = split == listing.validation
        if extra := [Item((listing.name_class(split, name),)) for name in here if name not in trained]:
            message = f"{_number(extra, 'class', 'classes')} in {place} that {train} lacks; a model cannot learn them"
            advice = f"add their images to {train}, or remove them"
            yield Finding("error" if is_used else "warning", "extra-class", message, advice, (*extra,))
        if missing := [Item((listing.name_class("train", name),)) for name in trained if name not in here]:
            what = "a folder" if listing.form == "folders" else "an image"
            message = f"{_number(missing, 'class', 'classes')} of {train} without {what} in {place}: never evaluated"
            yield Finding("warning", "missing-class", message, f"add some of their images to {place}", (*missing,))


def _duplicates(listing: Listing, images: ImageTable) -> Iterator[Finding]:
    """Tell groups of equal pictures apart: two classes, two splits, or neither; a group may be both of the first."""
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
        message = f"{_number(contradictory, 'picture')} {where}: their labels contradict each other"
        advice = "keep each with what it shows, and remove the others"
        yield Finding("error", "contradictory-label", message, advice, (*contradictory,))
    if leaking:
        message = f"{_number(leaking, 'picture')} in more than one split: the evaluation counts what was trained on"
        yield Finding("error", "leak", message, f"remove them from {listing.name_split('train')}", (*leaking,))
    if repeated:
        surplus = sum(len(item.paths) - 1 for item in repeated)
        message = (
            f"{_number(repeated, 'picture')} more than once in a split, the same in each pixel: {surplus:,} to spare"
        )
        yield Finding("warning", "duplicate", message, "keep one of each", (*repeated,))


def _layout(listing: Listing, others: ImageTable) -> Iterator[Finding]:
    lost = [path for path in listing.stray_files if _has_image_suffix(path)]
    if lost:
        message = f"{_number(lost, 'image')} beside the class folders; a training passes over them"
        yield Finding("warning", "stray-image", message, "move them into the folder of their class", _plain(lost))
    indices = others.having(ImageFlag.UNNOTICED)
    if len(indices):
        items = tuple(Item((listing.others[int(i)],), others.reasons[int(i)]) for i in indices)
        message = f"{_number(items, 'image')} that a training passes over, for their suffix"
        yield Finding("warning", "unnoticed-image", message, "save them as .jpg or .png", items)
    if listing.skipped:
        message = (
            f"{_number(listing.skipped, 'file or folder', 'files and folders')} skipped, as hidden or the system's"
        )
        yield Finding("note", "skipped", message, "nothing if that is meant", _plain(listing.skipped))
    if listing.links:
        message = f"{_number(listing.links, 'link')} to folders that are read anyway, not followed"
        yield Finding("note", "link", message, "nothing if that is meant", _plain(listing.links))
    if listing.nested:
        nested = tuple(Item((f"{path}/",), f"{count:,} images") for path, count in sorted(listing.nested.items()))
        message = f"{_number(nested, 'folder')} within class folders; their images count for the class above"
        advice = "nothing if that is meant; else move them beside the class folders"
        yield Finding("warning", "nested-folder", message, advice, nested)
    if listing.stray_folders:
        items = tuple(Item((f"{path}/",)) for path in listing.stray_folders)
        message = f"{_number(items, 'folder')} beside the splits, not read by a training and not checked"
        yield Finding("warning", "stray-folder", message, "nothing if that is meant", items)
    unnoticed = set(indices.tolist())
    rest = [path for path in listing.stray_files if not _has_image_suffix(path)]
    rest += [path for index, path in enumerate(listing.others) if index not in unnoticed]
    if rest:
        message = f"{_number(rest, 'file')} that {'is' if len(rest) == 1 else 'are'} no image; a training passes over"
        yield Finding("note", "stray-file", message, "nothing if that is meant", _plain(rest))


def _balance(listing: Listing, images: ImageTable) -> Iterator[Finding]:
    """Count the training images that can be read, by class."""
    split = listing.splits.index(listing.training)
    counts = Counter({name: count for name, count in listing.counts()[listing.training].items() if count})
    for index in images.having(BROKEN):
        if listing.split_of[int(index)] == split:
            counts.subtract(listing.classes_of(int(index)))
    name = "the folder" if listing.is_whole else listing.name_split(listing.training)
    if few := [Item((cls,), f"{count} images") for cls, count in counts.items() if count < FEW_IMAGES]:
        message = f"{_number(few, 'class', 'classes')} with fewer than {FEW_IMAGES} good images in {name}"
        advice = "add images; with so few, start from weights that were trained elsewhere (model.weights)"
        yield Finding("warning", "small-class", message, advice, (*few,))
    ranked = [(cls, count) for cls, count in counts.most_common() if count > 0]
    if ranked and ranked[0][1] > IMBALANCE * ranked[-1][1]:
        (most, largest), (least, smallest) = ranked[0], ranked[-1]
        message = (
            f"classes of {name} differ {largest / smallest:.0f}-fold in size: {most} has {largest:,} images, "
            f"{least} {smallest:,}; a model learns to favour the large ones"
        )
        items = tuple(Item((cls,), f"{count:,} images") for cls, count in (ranked[0], *reversed(ranked[1:])))
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
            "look at them; cut or remove what is no picture",
        ),
    ]
    for kind, indices, words, advice in kinds:
        if items := _items(listing, indices, lambda index: f"{sizes[index, 0]}x{sizes[index, 1]}"):
            yield Finding("warning", kind, f"{_number(items, 'image')} {words}", advice, items)


def _modes(listing: Listing, images: ImageTable) -> Iterator[Finding]:
    fine = "nothing; a training reads all images as RGB"
    kinds = [
        ("cmyk", ImageFlag.CMYK, "in CMYK, the colours of print", "compare their colours with the others': data info"),
        (
            "deep",
            ImageFlag.DEEP,
            "with more than 8 bits a channel",
            "save them with 8 bits if they look wrong in data info",
        ),
        (
            "alpha",
            ImageFlag.ALPHA,
            "with transparency, which a training shows over white",
            "save them on another background if that matters",
        ),
        ("palette", ImageFlag.PALETTE, "with a palette", fine),
        ("rotated", ImageFlag.ROTATED, "turned by an EXIF tag", "nothing; a training turns them upright"),
        ("animated", ImageFlag.ANIMATED, "with several frames", "save the frames that matter as images of their own"),
    ]
    for kind, trait, words, advice in kinds:
        if items := _items(listing, images.having(trait)):
            yield Finding("note", kind, f"{_number(items, 'image')} {words}", advice, items)
    grey = images.having(ImageFlag.GREY)
    num_read = len(listing.paths) - len(images.having(BROKEN))
    if 0 < len(grey) < num_read:
        message = f"{_number(grey, 'image')} of {num_read:,} without colour, among images in colour"
        yield Finding("note", "grey", message, fine, _items(listing, grey))


def _items(listing: Listing, indices: Indices, words: Callable[[int], str] = lambda _: "") -> ImageItems:
    return ImageItems(listing, indices, words)


def _plain(paths: Iterable[str]) -> tuple[Item, ...]:
    return tuple(Item((path,)) for path in paths)


def _has_image_suffix(path: str) -> bool:
    return path.lower().endswith(tuple(IMAGE_SUFFIXES))


def _number(things: Sized, one: str, many: str = "") -> str:
    return f"{len(things):,} {one if len(things) == 1 else many or f'{one}s'}"
