"""Owns what a picture may be, and reading many of them in parallel in the order they were named."""

from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from distrain.data.decoders import to_rgb
from distrain.data.images import read_image
from distrain.errors import DataError

if TYPE_CHECKING:
    from distrain.bundle.load import Bundle

Picture = str | Path | Image.Image | torch.Tensor


def read_picture(picture: Picture, *, num_channels: int, decode_size: int | None = None) -> torch.Tensor:
    """Return a picture as a tensor [num_channels, height, width], uint8 but for a float tensor, which stays one.

    Raises `DataError` for a file that cannot be read and a tensor of another shape.
    """
    if isinstance(picture, torch.Tensor):
        if picture.ndim != 3 or picture.shape[0] != num_channels:
            raise DataError(f"a picture is a tensor of {num_channels} channels, [c, h, w], not {list(picture.shape)}")
        return picture
    if isinstance(picture, Image.Image):
        return _as_channels(np.array(to_rgb(picture)), num_channels)
    if not Path(picture).is_file():
        raise DataError(f"image {picture} cannot be read (there is no such file)")
    pixels = read_image(str(picture), decode_size=decode_size)
    return pixels if num_channels == 3 else _as_channels(pixels.permute(1, 2, 0).numpy(), num_channels)


def _as_channels(rgb: NDArray[np.uint8], num_channels: int) -> torch.Tensor:
    """Return pixels [height, width, 3] as [num_channels, height, width]: 3, or 1 for grey, by Pillow's weights."""
    pixels = rgb if num_channels == 3 else np.array(Image.fromarray(rgb).convert("L"))[..., None]
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def prepare_in_order(
    bundle: "Bundle", paths: Iterable[str], *, num_workers: int, num_ahead: int
) -> Generator[tuple[str, torch.Tensor | str], None, None]:
    """Yield each path with its prepared picture, or with a sentence that says why there is none, in their order.

    `num_workers` threads decode, at most `num_ahead` pictures ahead of what was taken. Close it to end them early.
    """
    waiting: deque[tuple[str, Future[torch.Tensor | str]]] = deque()
    executor = ThreadPoolExecutor(num_workers, thread_name_prefix="decode")
    try:
        for path in paths:
            waiting.append((path, executor.submit(_prepare, bundle, path)))
            if len(waiting) > num_ahead:
                first, future = waiting.popleft()
                yield first, future.result()
        for path, future in waiting:
            yield path, future.result()
    finally:
        executor.shutdown(cancel_futures=True)


def _prepare(bundle: "Bundle", path: str) -> torch.Tensor | str:
    try:
        return bundle.prepare(path)
    except DataError as error:
        return str(error)
    except Exception as error:  # noqa: BLE001 - a transform may fail in any way on one picture; the others go on
        return f"image {path} cannot be transformed ({type(error).__name__}: {str(error).splitlines()[:1]})"
