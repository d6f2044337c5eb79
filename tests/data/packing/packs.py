"""Makes folders of noise images, and packs them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from distrain.config import Data
from distrain.data.packing.format import Form
from distrain.data.packing.pack import Outcome, pack_dataset
from distrain.data.sources.base import Source
from distrain.data.sources.registry import open_sources


def data(path: Path | None, **fields: Any) -> Data:
    return Data.model_validate(
        {"source": "imagefolder", "path": None if path is None else str(path), "batch_size": 4, **fields}
    )


def opened(path: Path, **fields: Any) -> dict[str, Source]:
    return open_sources(data(path, **fields))


def pack(folder: Path | None, out: Path, *, skips: bool = False, starts_over: bool = False, **fields: Any) -> Outcome:
    """Pack in this process; `fields` that do not belong to the form belong to the data."""
    form = {key: fields.pop(key) for key in ("format", "size", "square", "quality") if key in fields}
    return pack_dataset(
        data(folder, **fields), out, Form(**form), jobs=2, skips=skips, starts_over=starts_over, progress=no_progress
    )


@contextmanager
def no_progress(title: str, total: int, *, unit: str) -> Iterator[Callable[[], None]]:
    yield lambda: None


def noise(seed: int, *, height: int = 72, width: int = 96) -> Image.Image:
    """A unique image that JPEG does not compress much."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def make_folder(root: Path, *, train: int = 6, val: int = 2) -> Path:
    """Write JPEGs of noise, all of different sizes, in two classes per split, one with a name that is not ASCII."""
    for split, count in (("train", train), ("val", val)):
        for number in range(count):
            below = root / split / ("käfer" if number % 2 else "ants")
            below.mkdir(parents=True, exist_ok=True)
            seed = number + 100 * (split == "val")
            noise(seed, width=96 + number).save(below / f"{number} 画.jpg", quality=95)
    return root


def content(folder: Path) -> dict[str, bytes]:
    """All files of a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
