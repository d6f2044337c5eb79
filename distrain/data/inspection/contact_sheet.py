"""Draws a contact sheet with some images of each class, as a PNG or in a terminal."""

import math
from functools import partial
from typing import TypeVar

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps
from rich.color import Color
from rich.segment import Segment, Segments
from rich.style import Style

from distrain.data.inspection.captions import fitting, printable
from distrain.data.inspection.scan import Listing
from distrain.data.inspection.statistics import open_as_rgb
from distrain.data.inspection.worker_pool import DecodePool

GAP = 4  # pixels
CAPTION = 18  # pixels, the height of a class name
CELL_SIDES = ((100, 96), (300, 64))  # (largest number of classes, side of an image in pixels)
MIN_CELL = 40
BACKGROUND, FOREGROUND, MISSING = (255, 255, 255), (20, 20, 20), (225, 205, 205)
PREVIEW_CLASSES = 4
PREVIEW_SIDE = 14  # pixels: columns of the terminal, and half as many lines

T = TypeVar("T")
Gallery = dict[str, list[Image.Image]]


def collect_images(pool: DecodePool, listing: Listing, *, per_class: int) -> Gallery:
    """Return up to `per_class` square images of each training class, spread evenly over its files.

    An image that cannot be read is a crossed-out square.
    """
    split = listing.splits.index(listing.training)
    by_class: dict[str, list[int]] = {name: [] for name in listing.folders[listing.training]}
    for index, image_split in enumerate(listing.split_of):
        if image_split == split:
            for name in listing.classes_of(index):
                by_class[name].append(index)
    chosen = {name: _spread(indices, per_class) for name, indices in by_class.items() if indices}
    side = cell_side(len(chosen))
    paths = [listing.address(index) for indices in chosen.values() for index in indices]
    found = pool.read(partial(make_thumbnail, side=side), paths, on_crash=lambda _: None)
    return {name: [_as_image(next(found), side) for _ in indices] for name, indices in chosen.items()}


def make_thumbnail(path: str, *, side: int) -> bytes | None:
    """Return a file's image padded to a square, uint8 [side, side, 3]; None if unreadable."""
    image = open_as_rgb(path, near=side)
    return None if image is None else ImageOps.pad(image, (side, side), color=BACKGROUND).tobytes()


def cell_side(num_classes: int) -> int:
    """Return the side in pixels of an image on a sheet of this many classes."""
    return next((side for limit, side in CELL_SIDES if num_classes <= limit), MIN_CELL)


def draw_sheet(gallery: Gallery) -> Image.Image:
    """Return an approximately square sheet with a row of images for each class, its name above."""
    side = cell_side(len(gallery))
    per_class = max(len(images) for images in gallery.values())
    width, height = per_class * (side + GAP) + 3 * GAP, side + CAPTION + 2 * GAP
    num_columns = max(1, round(math.sqrt(len(gallery) * height / width)))
    num_rows = math.ceil(len(gallery) / num_columns)
    sheet = Image.new("RGB", (num_columns * width + GAP, num_rows * height + GAP), BACKGROUND)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=CAPTION - 6)
    for number, (name, images) in enumerate(gallery.items()):
        left, top = GAP + number // num_rows * width, GAP + number % num_rows * height
        draw.text((left, top), fitting(name, font, width - 3 * GAP), FOREGROUND, font)
        for position, image in enumerate(images):
            sheet.paste(image, (left + position * (side + GAP), top + CAPTION))
    return sheet


def preview(gallery: Gallery, *, columns: int) -> Segments:
    """Return a few classes of the sheet as text, each character two pixels one above the other."""
    segments = list[Segment]()
    for name in _spread(list(gallery), PREVIEW_CLASSES):
        images = gallery[name][: max(1, columns // (PREVIEW_SIDE + 1))]
        strip = Image.new("RGB", (len(images) * (PREVIEW_SIDE + 1) - 1, PREVIEW_SIDE))
        for position, image in enumerate(images):
            strip.paste(image.resize((PREVIEW_SIDE, PREVIEW_SIDE)), (position * (PREVIEW_SIDE + 1), 0))
        segments += [Segment(printable(name)[:columns], Style(bold=True)), Segment.line(), *_half_blocks(strip)]
    return Segments(segments)


def _half_blocks(strip: Image.Image) -> list[Segment]:
    pixels = np.asarray(strip)  # [height, width, 3]
    segments = list[Segment]()
    for upper, lower in zip(pixels[::2], pixels[1::2], strict=True):
        for column, (above, below) in enumerate(zip(upper.tolist(), lower.tolist(), strict=True)):
            is_gap = column % (PREVIEW_SIDE + 1) == PREVIEW_SIDE
            style = Style(color=Color.from_rgb(*above), bgcolor=Color.from_rgb(*below))
            segments.append(Segment(" ") if is_gap else Segment("▀", style))
        segments.append(Segment.line())
    return segments


def _as_image(pixels: bytes | None, side: int) -> Image.Image:
    if pixels is not None:
        return Image.frombytes("RGB", (side, side), pixels)
    square = Image.new("RGB", (side, side), MISSING)
    draw = ImageDraw.Draw(square)
    draw.line((0, 0, side, side), FOREGROUND)
    draw.line((0, side, side, 0), FOREGROUND)
    return square


def _spread(items: list[T], count: int) -> list[T]:
    """Return up to `count` of the items, evenly spaced."""
    count = min(count, len(items))
    return [items[position * len(items) // count] for position in range(count)]
