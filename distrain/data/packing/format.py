"""Defines the format of a packed dataset on disk, reads it and verifies it, without decoding images or importing torch.

A packed dataset is a folder with a few large files instead of many small ones, so that reading an image opens no file:

    photos.packed/
      pack.json             source and options of the pack, and the sizes and digests of all its other files
      train-00000.bin       the images of a split, one after another, without gaps
      train-00001.bin
      train.index.npy       one row per image, see `INDEX`: its place in the files, height, width and channels
      train.targets.npy     int64 [n] classes, or float32 [n, outputs] labels or values
      train.names.npy       uint8 [bytes]: the path of each image's file below the source, each ended by a zero byte
      val-00000.bin ...     the same for the validation split, where there is one

`format: jpeg` stores JPEG files; each shard is a file. `format: pixels` stores uint8 pixels, which are mapped into
memory and never decoded. Images of up to `SMALL` pixels are stored as [channels, height, width], which makes gathering
a batch six times as fast; larger ones as [height, width, channels], which makes cropping and resizing up to twice as
fast. The shards of a split share one file, so that a split whose images all have one `shape` is a single tensor.

All numbers are little-endian, digests are xxh3_128. `digest` of pack.json covers all its other keys. The `fingerprint`
of a split is that of its source where all images have exactly the pixels of the source, so that a run can resume from
either; otherwise it is a digest over all stored data. A pack is written to a temporary folder and renamed when it is
complete (`distrain.data.packing.pack`), so a folder with pack.json is always complete.
"""

import io
import json
import mmap
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xxhash
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from distrain.config.data import Split
from distrain.config.metrics import Target
from distrain.config.validation import describe
from distrain.errors import DataError
from distrain.messages import MEBIBYTE

HEADER = "pack.json"
SMALL = 64 * 64  # pixels
INDEX = np.dtype(
    [
        ("offset", "<u8"),  # in the file of its shard, in bytes
        ("length", "<u8"),  # in bytes
        ("source_bytes", "<u8"),  # of the image's source file; 0 where it has no file
        ("shard", "<u4"),
        ("height", "<u4"),  # pixels
        ("width", "<u4"),
        ("channels", "<u4"),
    ]
)
Format = Literal["jpeg", "pixels"]
Bytes = NDArray[np.uint8]
Array = Literal["index", "targets", "names"]
_CHUNK_BYTES = 8 * MEBIBYTE  # bytes read at a time
_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)  # Linux's value; in Python since 3.13


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Shard(_Part):
    """A range of a file that holds whole images and is verified as a unit."""

    file: str
    offset: int
    bytes: int
    images: int
    digest: str


class ArrayFile(_Part):
    """A .npy file."""

    bytes: int
    digest: str


class Skipped(_Part):
    """A file of the source that was skipped because it could not be read."""

    name: str
    source_bytes: int
    reason: str


class PackedSplit(_Part):
    """One split. `num_changed` images have other pixels than in the source: they were resized or re-encoded."""

    images: int
    shape: tuple[int, int, int] | None  # channels, height, width, of every image
    source_bytes: int
    num_changed: int
    skipped: tuple[Skipped, ...]
    shards: tuple[Shard, ...]
    arrays: dict[Array, ArrayFile]
    source_fingerprint: str
    fingerprint: str

    @property
    def bytes(self) -> int:
        """The total size of the stored images in bytes."""
        return sum(shard.bytes for shard in self.shards)


class Form(_Part):
    """How images are stored: the options of `distrain data pack`."""

    format: Format = "jpeg"
    size: int | None = None
    square: bool = False
    quality: int = 90


class Pack(_Part):
    """The content of pack.json."""

    version: Literal[1] = 1
    form: Form
    source: str  # the value of data.source
    path: str | None  # of the source
    target: Target
    classes: tuple[str, ...]
    splits: dict[Split, PackedSplit]


@dataclass(frozen=True)
class Damage:
    """A shard that cannot be read, or whose content differs from what was written."""

    file: str
    offset: int
    bytes: int
    reason: str


def is_packed(path: str | Path | None) -> bool:
    """Whether a path is the folder of a packed dataset."""
    return path is not None and os.path.isfile(os.path.join(path, HEADER))  # noqa: PTH113, PTH118 - accepts any string


def array_name(split: Split, array: Array) -> str:
    """Return the name of the file that holds an array of a split."""
    return f"{split}.{array}.npy"


def is_small(height: int, width: int) -> bool:
    """Whether the pixels of an image of this size are stored as [channels, height, width]."""
    return height * width <= SMALL


def header_text(pack: Pack) -> str:
    """Return the text of pack.json."""
    content = pack.model_dump(mode="python")
    return json.dumps({"digest": _digest_of(content), **content}, indent=1) + "\n"


def read_pack(folder: str | Path) -> Pack:
    """Return the header of a packed dataset; checks the sizes of all its files, and reads nothing else.

    Raises `DataError` where the dataset is damaged, or has another version.
    """
    folder = Path(folder)
    pack = _read_header(folder)
    sizes: dict[str, int] = {}
    for split, part in pack.splits.items():
        for shard in part.shards:
            sizes[shard.file] = max(sizes.get(shard.file, 0), shard.offset + shard.bytes)
        for array, file in part.arrays.items():
            sizes[array_name(split, array)] = file.bytes
    for name, size in sizes.items():
        try:
            found = (folder / name).stat().st_size
        except OSError as error:
            raise damaged(folder, f"{name} cannot be read ({error.strerror})") from None
        if found != size:
            raise damaged(folder, f"{name} has {found:,} bytes, but {size:,} were written")
    return pack


def _read_header(folder: Path) -> Pack:
    try:
        content = json.loads((folder / HEADER).read_text(encoding="utf-8"))
        if content["version"] != 1:
            raise DataError(
                f"packed dataset {folder} has version {content['version']!s:.20}, but this distrain reads version 1; "
                f"pack it again"
            )
        digest = content.pop("digest")
        pack = Pack.model_validate(content)
    except OSError as error:
        raise DataError(f"{folder} is not a packed dataset: its {HEADER} cannot be read ({error.strerror})") from None
    except ValidationError as error:
        what = describe(error, Pack, content, noun="it")
        raise damaged(folder, f"{HEADER} is not as it was written ({what})") from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        what = type(error).__name__
        raise damaged(folder, f"{HEADER} is not as it was written ({what})") from None
    if digest != _digest_of(pack.model_dump(mode="python")):
        raise damaged(folder, f"{HEADER} is not as it was written (its digest differs)")
    return pack


def damaged(folder: Path, reason: str) -> DataError:
    """Return the error for a damaged pack."""
    return DataError(f"packed dataset {folder} is damaged: {reason}; copy it again, or pack it again with --force")


def _digest_of(content: dict[str, Any]) -> str:
    return xxhash.xxh3_128(json.dumps(content, sort_keys=True).encode()).hexdigest()


class PackedImages:
    """The stored images of one split, mapped into memory: safe to read from any thread and after a fork.

    Writing into a returned array changes only the memory of this process, never a file. Raises `DataError` where an
    array of the split is not as it was written.
    """

    def __init__(self, folder: str | Path, pack: Pack, split: Split) -> None:
        self.folder = Path(folder)
        self.form = pack.form
        self.part = pack.splits[split]
        self._split: Split = split
        self.index = self._array("index")
        self._names: Bytes = self._array("names")
        files = dict.fromkeys(shard.file for shard in self.part.shards)
        self._maps = {name: map_file(self.folder / name) for name in files}
        self._map_of_shard = [self._maps[shard.file] for shard in self.part.shards]

    def __len__(self) -> int:
        """Return the number of images."""
        return self.part.images

    def targets(self) -> NDArray[Any]:
        """Return the targets of all images: int64 [n], or float32 [n, outputs]."""
        return np.array(self._array("targets"))

    def content(self, index: int) -> Bytes:
        """Return the stored bytes of an image, uint8 [length], without a copy."""
        offset, length, _, shard, *_ = self._row(index)
        content: Bytes = self._map_of_shard[shard][offset : offset + length]
        return content

    def pixels(self, index: int) -> Bytes:
        """Return the pixels of an image of a pixel pack, uint8 [channels, height, width], without a copy."""
        *_, height, width, channels = self._row(index)
        content = self.content(index)
        if is_small(height, width):
            return content.reshape(channels, height, width)
        return content.reshape(height, width, channels).transpose(2, 0, 1)

    def _row(self, index: int) -> tuple[int, ...]:
        """Return a row of the index; reading its fields by name would take three times as long."""
        row: tuple[int, ...] = self.index[index].item()
        return row

    def all_pixels(self) -> Bytes:
        """Return the pixels of a pixel pack whose images have the same shape, uint8 [n, c, h, w], without a copy."""
        assert self.part.shape is not None
        channels, height, width = self.part.shape
        (content,) = self._maps.values()
        if is_small(height, width):
            return content.reshape(-1, channels, height, width)
        return content.reshape(-1, height, width, channels).transpose(0, 3, 1, 2)

    def name(self, index: int) -> str:
        """Return the path of an image's source file below the source."""
        ends = np.flatnonzero(self._names == 0)
        return os.fsdecode(self._names[ends[index - 1] + 1 if index else 0 : ends[index]].tobytes())

    def names(self) -> list[str]:
        """Return the names of all images."""
        return [os.fsdecode(name) for name in self._names.tobytes().split(b"\0")[:-1]]

    def _array(self, array: Array) -> NDArray[Any]:
        file, expected = self.folder / array_name(self._split, array), self.part.arrays[array]
        content = map_file(file)
        if xxhash.xxh3_128(content.data).hexdigest() != expected.digest:
            raise damaged(self.folder, f"{file.name} is not as it was written")
        stream = io.BytesIO(content[:4096].tobytes())  # the header of a .npy file is much shorter
        np.lib.format.read_magic(stream)
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
        return content[stream.tell() :].view(dtype).reshape(shape)


def map_file(path: Path) -> Bytes:
    """Map a file into memory copy-on-write, uint8 [bytes], without reserving memory."""
    try:
        with path.open("rb") as file:
            if not os.fstat(file.fileno()).st_size:
                return np.empty(0, np.uint8)
            flags, protection = mmap.MAP_PRIVATE | _NORESERVE, mmap.PROT_READ | mmap.PROT_WRITE
            return np.frombuffer(mmap.mmap(file.fileno(), 0, flags=flags, prot=protection), np.uint8)
    except OSError as error:
        raise DataError(f"{path} cannot be mapped into memory ({error.strerror}); check its permissions") from None


def verify_shards(folder: str | Path, pack: Pack, *, advance: Callable[[int], None]) -> list[Damage]:
    """Compare every byte of every shard with its digest; `advance` is called with the number of bytes read."""
    folder = Path(folder)
    found = []
    for part in pack.splits.values():
        for shard in part.shards:
            try:
                digest = range_digest(folder / shard.file, shard.offset, shard.bytes, advance=advance).hexdigest()
                reason = "" if digest == shard.digest else "its bytes differ from those that were written"
            except OSError as error:
                reason = f"it cannot be read ({error.strerror})"
            if reason:
                found.append(Damage(shard.file, shard.offset, shard.bytes, reason))
    return found


def range_digest(path: Path, offset: int, length: int, *, advance: Callable[[int], None]) -> xxhash.xxh3_128:
    """Return the digest over a range of a file, which can be updated further."""
    digest = xxhash.xxh3_128()
    for chunk in _chunks(path, offset, length):
        digest.update(chunk)
        advance(len(chunk))
    return digest


def _chunks(path: Path, offset: int, length: int) -> Iterator[bytes]:
    with path.open("rb", buffering=0) as file:
        file.seek(offset)
        while length > 0 and (chunk := file.read(min(length, _CHUNK_BYTES))):
            length -= len(chunk)
            yield chunk


def in_mebibytes(advance: Callable[[], None]) -> Callable[[int], None]:
    """Return a function that is called with numbers of bytes and calls `advance` for every MiB."""
    pending = 0

    def count(num_bytes: int) -> None:
        nonlocal pending
        pending += num_bytes
        while pending >= MEBIBYTE:
            pending -= MEBIBYTE
            advance()

    return count
