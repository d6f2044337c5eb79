"""Opens packed datasets as sources: images are decoded from mapped files, or are stored as pixels."""

from pathlib import Path

import torch

from distrain.config.data import Data, Split
from distrain.data.packing.format import Pack, PackedImages, read_pack
from distrain.data.sources.base import Source, TensorSource, target_at
from distrain.data.sources.decoders import DecodeError
from distrain.data.sources.files import decode, fingerprint_decoded, unreadable
from distrain.errors import DataError, RecipeError


def open_packed(config: Data) -> dict[str, Source]:
    """Open the splits of the packed dataset `config.path`; raises `DataError` where it is incomplete.

    The sizes of all files and the digests of all arrays are checked; `distrain data check` reads the images too.
    """
    if config.path is None:
        raise DataError("the recipe reads a packed dataset and none was given; pass it with --data DIR")
    pack = read_pack(config.path)
    if config.decode_size is not None and pack.form.format != "jpeg":
        raise RecipeError(
            f"data.decode_size={config.decode_size} is for JPEGs, but {config.path} holds pixels; remove it"
        )
    folder, splits = Path(config.path), [split for split in config.splits if split in pack.splits]
    return {split: _open_split(folder, pack, split, decode_size=config.decode_size) for split in splits}


def _open_split(folder: Path, pack: Pack, split: Split, *, decode_size: int | None) -> Source:
    images = PackedImages(folder, pack, split)
    if pack.form.format == "jpeg" or images.part.shape is None:
        return PackedSource(images, pack, decode_size=decode_size)
    return TensorSource(
        torch.from_numpy(images.all_pixels()),
        torch.from_numpy(images.targets()),
        pack.classes,
        target=pack.target,
        fingerprint=images.part.fingerprint,
        describe=lambda index: _describe(images, index),
        is_mapped=True,
    )


class PackedSource:
    """Images of one split, each with its own size, read from files that each process maps into memory once.

    `read` changes nothing and keeps no file position: it is safe to call from any number of threads at once, and in
    forks of this process. Pixels are a view of the mapped file: writing into an image in place changes it for the rest
    of the process, but never in the file.
    """

    has_known_targets = True
    is_thread_safe = True

    def __init__(self, images: PackedImages, pack: Pack, *, decode_size: int | None = None) -> None:
        self.classes = pack.classes
        self.target = pack.target
        self.targets = torch.from_numpy(images.targets())
        self._images = images
        self._decode_size = decode_size

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._images)

    def read(self, index: int) -> tuple[torch.Tensor, int | torch.Tensor]:
        """Return one image, uint8 [channels, height, width], and its target; raises `DataError` with its name."""
        return self._image(index), target_at(self.targets, index)

    def describe(self, index: int) -> str:
        """Return the name of the image's file in the source, and the pack."""
        return _describe(self._images, index)

    def fingerprint(self) -> str:
        """Return the digest that is stored in the pack, combined with `decode_size`."""
        return fingerprint_decoded(self._images.part.fingerprint, self._decode_size)

    def _image(self, index: int) -> torch.Tensor:
        if self._images.form.format == "pixels":
            return torch.from_numpy(self._images.pixels(index))
        try:
            image = decode(self._images.content(index), decode_size=self._decode_size)
        except DecodeError as error:
            advice = f"run distrain data check {self._images.folder} to see whether the pack is damaged"
            raise unreadable(self.describe(index), error, advice=advice) from None
        return image[: int(self._images.index[index]["channels"])]  # all three channels of a grey image are equal


def _describe(images: PackedImages, index: int) -> str:
    return f"{images.name(index)} of {images.folder}"
