"""Lists the samples to pack by name and size, and says whether a pack still matches its source."""

import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray

from distrain.config.data import Data, Split
from distrain.data.loading.isolation import Isolated, KilledError
from distrain.data.packing.encode import Stored, broken, store_file, store_image
from distrain.data.packing.format import Form, Pack, PackedImages, read_pack
from distrain.data.sources.base import DatasetSource, Source
from distrain.data.sources.decoders import load_decoders
from distrain.data.sources.files import FileSource, file_size
from distrain.errors import DataError

IMAGES_PER_TASK = 8  # enough that the overhead of a task is negligible for small images
TASKS_AHEAD = 3  # for each process
NUM_SAMPLED = 48  # images that are encoded to estimate the size of the pack


@dataclass
class SourceSplit:
    """The samples of one split of a source: their names, the sizes of their files, and a digest over all."""

    source: Source
    names: list[str]
    sizes: NDArray[np.int64]  # bytes; 0 where a sample has no file
    fingerprint: str
    _targets: NDArray[np.generic] = field(init=False)

    def __post_init__(self) -> None:
        self._targets = self.source.targets.numpy()

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.source)

    @property
    def has_files(self) -> bool:
        """Whether each sample is a file."""
        return isinstance(self.source, FileSource)

    def mark(self, first: int, last: int) -> str:
        """Return a digest over the names, sizes and targets of samples; over the whole source if it has no files."""
        digest = xxhash.xxh3_128(b"" if self.has_files else self.fingerprint.encode())
        digest.update(as_bytes(self.names[first:last]))
        digest.update(self.sizes[first:last].tobytes())
        digest.update(self._targets[first:last].tobytes())
        return digest.hexdigest()

    def store(self, index: int, form: Form) -> Stored:
        """Return a sample's stored form; raises `DataError`, and `BrokenImageError` where it cannot be decoded."""
        if self.has_files:
            return store_file(self.source.describe(index), form, expected_bytes=int(self.sizes[index]))
        image, _ = self.source.read(index)
        return store_image(image, form, name=self.names[index])

    def store_all(self, indices: Sequence[int], form: Form, *, jobs: int) -> Generator[Stored | DataError, None, None]:
        """Yield the stored form of samples, in order, encoded by `jobs` processes a few samples ahead.

        A sample that cannot be stored gives an error; one that crashes the process that reads it counts as broken.
        """

        def store(index: int) -> Stored | DataError:
            try:
                return self.store(index, form)
            except DataError as error:
                return error

        import torchvision.transforms.v2  # noqa: F401 - once here instead of in each process

        load_decoders()
        with Isolated(store, jobs, initializer=_use_one_thread) as processes:
            found = processes.map(indices, items_per_task=IMAGES_PER_TASK, tasks_ahead=TASKS_AHEAD)
            with closing(found):
                for index, stored in zip(indices, found, strict=True):
                    if isinstance(stored, KilledError):
                        stored = broken(self.source.describe(index), str(stored))
                    yield stored


def describe_split(source: Source, config: Data, *, skips: bool) -> SourceSplit:
    """Return the samples of a source; raises `DataError` for a stream, and for a missing file.

    With `skips`, a missing file has 0 bytes, and is skipped when it is read.
    """
    if isinstance(source, DatasetSource) and source.is_stream:
        raise DataError(f"data.source={config.source} is a stream; only datasets with an index can be packed")
    names = [source.describe(index) for index in range(len(source))]
    if not isinstance(source, FileSource):
        return SourceSplit(source, names, np.zeros(len(source), np.int64), source.fingerprint())
    fingerprint = source.fingerprint(allow_missing=skips)
    sizes = np.fromiter((file_size(path, allow_missing=skips) for path in names), np.int64, len(names))
    base = Path(config.path or ".")
    prefix = f"{base if base.is_dir() else base.parent}{os.sep}"
    return SourceSplit(source, [path.removeprefix(prefix) for path in names], sizes, fingerprint)


def check_complete(out: Path, config: Data, form: Form, sources: dict[Split, SourceSplit]) -> Pack:
    """Return the header of a finished pack; raises `DataError` where packing again would give another result."""
    pack = read_pack(out)
    requested, existing = form.model_dump(), pack.form.model_dump()
    changes = [
        f"{key} is {existing[key]} in it, but {requested[key]} was requested"
        for key in requested
        if requested[key] != existing[key]
    ]
    if set(sources) != set(pack.splits):
        changes.append(f"it has {', '.join(pack.splits)}, but the source has {', '.join(sources)}")
    for split, samples in sources.items():
        changes += _changes(out, pack, split, samples) if split in pack.splits else []
    if list(pack.classes) != list(sources["train"].source.classes):
        changes.append("the classes have other names")
    if changes:
        raise DataError(
            f"{out} is complete, but does not match {config.path or config.source} now: {'; '.join(changes)}; --force "
            f"packs it again"
        )
    return pack


def _changes(out: Path, pack: Pack, split: Split, samples: SourceSplit) -> Iterator[str]:
    part = pack.splits[split]
    if part.source_fingerprint == samples.fingerprint:
        return
    images = PackedImages(out, pack, split)
    then = dict(zip(images.names(), images.index["source_bytes"].tolist(), strict=True))
    then |= {skipped.name: skipped.source_bytes for skipped in part.skipped}
    now = dict(zip(samples.names, samples.sizes.tolist(), strict=True))
    counts = {
        "added": len(now.keys() - then.keys()),
        "removed": len(then.keys() - now.keys()),
        "changed in size": sum(now[name] != then[name] for name in now.keys() & then.keys()),
    }
    differences = [f"{count:,} {what}" for what, count in counts.items() if count]
    yield f"{split} has {', '.join(differences) or 'other targets, another order or other pixels'}"


def estimate_bytes(samples: SourceSplit, form: Form, *, jobs: int) -> int:
    """Estimate the stored size of a split in bytes, from some of its images."""
    if len(samples) == 0:
        return 0
    chosen = np.unique(np.linspace(0, len(samples) - 1, NUM_SAMPLED).round().astype(int)).tolist()
    before = after = count = 0
    for index, stored in zip(chosen, samples.store_all(chosen, form, jobs=jobs), strict=True):
        if isinstance(stored, Stored):  # errors are reported when the pack is written
            after += len(stored.content)
            before += int(samples.sizes[index])
            count += 1
    if form.format == "jpeg" and before:
        return int(after / before * samples.sizes.sum())
    return after * len(samples) // max(count, 1)


def _use_one_thread() -> None:
    torch.set_num_threads(1)


def as_bytes(names: list[str]) -> bytes:
    """Return names as bytes, each ended by a zero byte."""
    return b"".join(os.fsencode(name) + b"\0" for name in names)
