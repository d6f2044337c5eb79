"""Reads many pictures in parallel, in the order of their names, and says what a picture may be."""

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

Picture = str | Path | Image.Image | torch.Tensor


def read_picture(picture: Picture, *, num_channels: int, decode_size: int | None = None) -> torch.Tensor:
    """Return a picture as a tensor [num_channels, height, width], uint8 but for a float tensor, which stays one.

    Raises `DataError` for a file that cannot be read and a tensor of another shape.
    """
    if isinstance(picture, torch.Tensor):
        if picture.ndim != 3 or picture.shape[0] != num_channels:
            raise DataError(
                f"a picture is a tensor of {counted(num_channels, 'channel')}, [c, h, w], not {list(picture.shape)}"
            )
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

    `num_workers` processes decode, at most about `num_ahead` pictures ahead of what was taken. Close it to end them.
    """
    import torchvision.transforms.v2  # noqa: F401 - here once, and not in each process

    load_decoders()
    asked, named = tee(paths)
    with Isolated(partial(_prepare, bundle), num_workers, initializer=_initialize) as processes:
        found = processes.map(asked, items_per_task=1, tasks_ahead=max(1, num_ahead // num_workers))
        with closing(found):
            for path, picture in zip(named, found, strict=False):  # the next path may not be asked for yet
                if isinstance(picture, KilledError):
                    yield path, str(unreadable(path, DecodeError(str(picture))))
                else:
                    yield path, picture if isinstance(picture, str) else picture.tensor()


@dataclass(frozen=True)
class _Flat:
    """A tensor as bytes: torch would hand it to another process in shared memory, which a mount may bound."""

    content: NDArray[np.uint8]
    dtype: torch.dtype
    shape: tuple[int, ...]
    are_channels_last: bool

    @classmethod
    def of(cls, image: torch.Tensor) -> "_Flat":
        """Return an image [channels, height, width], in the order of its bytes if that is one of the two usual."""
        are_channels_last = image.stride(0) == 1 and len(image) > 1
        pieces = (image.permute(1, 2, 0) if are_channels_last else image).contiguous()
        content = pieces.reshape(-1).view(torch.uint8).numpy()
        return cls(content, image.dtype, tuple(pieces.shape), are_channels_last)

    def tensor(self) -> torch.Tensor:
        """Return the image."""
        pieces = torch.from_numpy(self.content).view(self.dtype).view(self.shape)
        return pieces.permute(2, 0, 1) if self.are_channels_last else pieces


def _initialize() -> None:
    torch.set_num_threads(1)


def _prepare(bundle: "Bundle", path: str) -> _Flat | str:
    try:
        return _Flat.of(bundle.prepare(path))
    except DataError as error:
        return str(error)
    except Exception as error:  # noqa: BLE001 - a transform may fail in any way on one picture; the others go on
        return f"image {path} cannot be transformed ({type_and_first_line(error)})"
