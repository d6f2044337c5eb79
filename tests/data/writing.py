"""Writes small image files for the tests of the sources."""

from pathlib import Path

import numpy as np
from PIL import Image


def gradient() -> Image.Image:
    rows, columns = np.mgrid[0:24, 0:32]
    return Image.fromarray(np.stack([rows * 8, columns * 8, rows + columns], axis=-1).astype(np.uint8))


def write(file: Path, image: Image.Image | None = None) -> Path:
    """Write an image to a file below folders that need not be there."""
    file.parent.mkdir(parents=True, exist_ok=True)
    (gradient() if image is None else image).save(file)
    return file
