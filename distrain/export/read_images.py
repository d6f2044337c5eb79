"""Reads images from paths, Pillow images and tensors, and many paths in parallel, in their order."""

from collections.abc import Generator, Iterable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import tee
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from distrain.data.loading.isolation import Isolated, KilledError
from distrain.data.sources.decoders import DecodeError, load_decoders, to_rgb
from distrain.data.sources.files import read_image, unreadable
from distrain.errors import DataError
from distrain.messages import counted, type_and_first_line

if TYPE_CHECKING:
    from distrain.export.bundle import Bundle

ImageInput = str | Path | Image.Image | torch.Tensor


def load_image(source: ImageInput, *, num_channels: int, decode_size: int | None = None) -> torch.Tensor:
    """Return an image as a tensor [num_channels, height, width], uint8, or unchanged where it is a tensor already.

    Raises `DataError` for a file that cannot be read and a tensor of another shape.
    """
    if isinstance(source, torch.Tensor):
        if source.ndim != 3 or source.shape[0] != num_channels:
            raise DataError(
                f"an image must be a tensor of {counted(num_channels, 'channel')}, [c, h, w], not {list(source.shape)}"
            )
        return source
    if isinstance(source, Image.Image):
        return _as_channels(np.array(to_rgb(source)), num_channels)
    if not Path(source).is_file():
        raise DataError(f"image {source} cannot be read (there is no such file)")
    pixels = read_image(str(source), decode_size=decode_size)
    return pixels if num_channels == 3 else _as_channels(pixels.permute(1, 2, 0).numpy(), num_channels)


def _as_channels(rgb: NDArray[np.uint8], num_channels: int) -> torch.Tensor:
    """Return pixels [height, width, 3] as [num_channels, height, width]: 3, or 1 for grey, by Pillow's weights."""
    pixels = rgb if num_channels == 3 else np.array(Image.fromarray(rgb).convert("L"))[..., None]
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def prepare_in_order(
    bundle: "Bundle", paths: Iterable[str], *, num_workers: int, num_ahead: int
) -> Generator[tuple[str, torch.Tensor | str], None, None]:
    """Yield each path with its prepared image, or with a sentence that says why there is none, in their order.

    `num_workers` processes decode, at most about `num_ahead` images ahead of the consumer. Close it to end them.
    """
    import torchvision.transforms.v2  # noqa: F401 - once here instead of in each process

    load_decoders()
    paths_to_read, paths_to_yield = tee(paths)
    with Isolated(partial(_prepare, bundle), num_workers, initializer=_initialize) as processes:
        found = processes.map(paths_to_read, items_per_task=1, tasks_ahead=max(1, num_ahead // num_workers))
        with closing(found):
            for path, source in zip(paths_to_yield, found, strict=False):  # the next path may not have been read yet
                if isinstance(source, KilledError):
                    yield path, str(unreadable(path, DecodeError(str(source))))
                else:
                    yield path, source if isinstance(source, str) else source.tensor()


@dataclass(frozen=True)
class _FlatImage:
    """A tensor as bytes: torch would pass it to another process in shared memory, which a mount may limit."""

    content: NDArray[np.uint8]
    dtype: torch.dtype
    shape: tuple[int, ...]
    are_channels_last: bool

    @classmethod
    def of(cls, image: torch.Tensor) -> "_FlatImage":
        """Return an image [channels, height, width] as bytes, in its memory order where that is contiguous."""
        are_channels_last = image.stride(0) == 1 and len(image) > 1
        pixels = (image.permute(1, 2, 0) if are_channels_last else image).contiguous()
        content = pixels.reshape(-1).view(torch.uint8).numpy()
        return cls(content, image.dtype, tuple(pixels.shape), are_channels_last)

    def tensor(self) -> torch.Tensor:
        """Return the image."""
        pixels = torch.from_numpy(self.content).view(self.dtype).view(self.shape)
        return pixels.permute(2, 0, 1) if self.are_channels_last else pixels


def _initialize() -> None:
    torch.set_num_threads(1)


def _prepare(bundle: "Bundle", path: str) -> _FlatImage | str:
    try:
        return _FlatImage.of(bundle.prepare(path))
    except DataError as error:
        return str(error)
    except Exception as error:  # noqa: BLE001 - a transform may raise anything for one image; the others are read
        return f"image {path} cannot be transformed ({type_and_first_line(error)})"
