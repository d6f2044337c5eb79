"""Draws a small data set of masks: bright rectangles and crosses on noise."""

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ["background", "rectangle", "cross"]


def write_masks(root: Path, *, train: int = 40, val: int = 12, side: int = 16) -> Path:
    """Write images and masks, some pixels of which have no class, below `root`; returns it."""
    random = np.random.default_rng(5)
    for split, count in (("train", train), ("val", val)):
        for kind in ("images", "masks"):
            (root / split / kind).mkdir(parents=True)
        for number in range(count):
            image, mask = draw(random, side)
            Image.fromarray(image).save(root / split / "images" / f"{number:03}.png")
            Image.fromarray(mask).save(root / split / "masks" / f"{number:03}.png")
    (root / "classes.txt").write_text("\n".join(CLASSES))
    return root


def draw(random: np.random.Generator, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Return an image uint8 [side, side, 3] and its mask uint8 [side, side]."""
    mask = np.zeros((side, side), dtype=np.uint8)
    top, left = random.integers(1, side // 2, size=2)
    mask[top : top + side // 3, left : left + side // 3] = 1
    row, column = random.integers(2, side - 2, size=2)
    mask[row, :] = mask[:, column] = 2
    levels = np.array([60, 190, 120])[mask][..., None] + random.normal(0, 25, (side, side, 3))
    mask[0, :] = 255  # no class
    return levels.clip(0, 255).astype(np.uint8), mask
