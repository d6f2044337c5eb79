"""Predicts images in this process with the network of a run."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from distrain.errors import DataError
from distrain.runs.directory import RunDirectory
from distrain.runs.user_code import find_code
from distrain.system.gpus import count_gpus

if TYPE_CHECKING:
    import pandas as pd

    from distrain.export.bundle import Bundle

Images = Any  # one image, a sequence of them, or an array or a tensor with several


@dataclass(frozen=True)
class Predictions:
    """The outputs for each image: `values` float32 [n, outputs] are probabilities, or the values of a regression."""

    classes: tuple[str, ...]
    values: NDArray[np.float32]
    is_regression: bool

    @property
    def labels(self) -> list[str]:
        """The most likely class of each image."""
        if self.is_regression:
            raise DataError("a regression predicts values, not classes; use `values`")
        return [self.classes[number] for number in self.values.argmax(axis=1)]

    def to_pandas(self) -> "pd.DataFrame":
        """Return a row for each image and a column for each output; pandas must be installed."""
        import pandas as pd

        return pd.DataFrame(self.values, columns=list(self.classes))

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.values)

    def __repr__(self) -> str:
        shown = "" if self.is_regression else f": {', '.join(self.labels[:10])}{', ...' if len(self) > 10 else ''}"
        return f"Predictions of {len(self)} x {len(self.classes)}{shown}"


def open_network(run: RunDirectory, checkpoint: Path, *, device: str | None) -> "Bundle":
    """Return the network of a checkpoint, ready to predict on a device: by default a GPU if there is one."""
    from distrain.export.from_checkpoint import open_checkpoint

    imported_from = sys.path.copy()
    find_code(run)
    try:
        return open_checkpoint(run, checkpoint, device=device or ("cuda" if count_gpus() else "cpu"))
    finally:
        sys.path[:] = imported_from  # other modules of the notebook must not come from a run's copy of the code


def predict(network: "Bundle", images: Images, *, batch_size: int) -> Predictions:
    """Return the outputs of the network for the images; raises `DataError` for one that cannot be read."""
    import torch

    batches, batch = [], []
    for image in _each(images):
        batch.append(network.prepare(image))
        if len(batch) == batch_size:
            batches.append(network.predict_prepared(torch.stack(batch)))
            batch = []
    if batch:
        batches.append(network.predict_prepared(torch.stack(batch)))
    classes = network.classes
    values = torch.cat(batches).numpy() if batches else np.empty((0, len(classes)), np.float32)
    return Predictions(classes, values, is_regression=network.description.target == "values")


def _each(images: Images) -> Iterator[Any]:
    """Yield the images one by one, arrays as Pillow images."""
    if isinstance(images, str | Path | Image.Image):
        yield images
    elif isinstance(images, np.ndarray):
        is_one = images.ndim == 2 or (images.ndim == 3 and images.shape[-1] in {3, 4})
        yield from map(_to_pillow, [images] if is_one else images)
    elif hasattr(images, "ndim"):  # a tensor
        yield from [images] if images.ndim == 3 else images
    elif isinstance(images, Sequence):
        for image in images:
            yield _to_pillow(image) if isinstance(image, np.ndarray) else image
    else:
        raise DataError(
            f"images is a {type(images).__name__}; give a path, a Pillow image, an array, a tensor or a list"
        )


def _to_pillow(pixels: NDArray[Any]) -> Image.Image:
    if pixels.ndim == 3 and pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    if pixels.dtype != np.uint8 or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[-1] in {3, 4})):
        raise DataError(
            f"an image is an array of {pixels.dtype} {list(pixels.shape)}; use uint8 [h, w], [h, w, 3] or [h, w, 4]"
        )
    return Image.fromarray(pixels)
