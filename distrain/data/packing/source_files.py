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

IMAGES_A_TASK = 8  # enough that small ones are not held up by being handed over
TASKS_AHEAD = 3  # for each process
NUM_SAMPLED = 48  # images that are stored for an estimate of the whole


@dataclass
class Origin:
    """The samples of one split of a source: what each is called, the size of its file, and what is known of all."""

    source: Source
    names: list[str]
    sizes: NDArray[np.int64]  # bytes; 0 where a sample has no file of its own
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
        """Return a digest over the names, sizes and targets of samples; over the whole source where it has no files."""
        digest = xxhash.xxh3_128(b"" if self.has_files else self.fingerprint.encode())
        digest.update(as_bytes(self.names[first:last]))
        digest.update(self.sizes[first:last].tobytes())
        digest.update(self._targets[first:last].tobytes())
        return digest.hexdigest()

    def store(self, index: int, form: Form) -> Stored:
        """Return what a sample becomes; raises `DataError`, a `BrokenImageError` for one that cannot be decoded."""
        if self.has_files:
            return store_file(self.source.describe(index), form, expected_bytes=int(self.sizes[index]))
        image, _ = self.source.read(index)
        return store_image(image, form, name=self.names[index])

    def store_all(self, indices: Sequence[int], form: Form, *, jobs: int) -> Generator[Stored | DataError, None, None]:
        """Yield what samples become, in order, made by `jobs` processes a few samples ahead.

        A sample that cannot be stored gives the error, and one that kills the process that reads it is broken.
        """

        def store(index: int) -> Stored | DataError:
            try:
                return self.store(index, form)
            except DataError as error:
                return error

        import torchvision.transforms.v2  # noqa: F401 - here once, and not in each process

        load_decoders()
        with Isolated(store, jobs, initializer=_use_one_thread) as processes:
            found = processes.map(indices, items_per_task=IMAGES_A_TASK, tasks_ahead=TASKS_AHEAD)
            with closing(found):
                for index, stored in zip(indices, found, strict=True):
                    if isinstance(stored, KilledError):
                        stored = broken(self.source.describe(index), str(stored))
                    yield stored


def describe_origin(source: Source, config: Data, *, skips: bool) -> Origin:
    """Return the samples of a source; raises `DataError` for a stream, and for a file that is not there.

    With `skips`, such a file has 0 bytes, and is left out when its turn comes.
    """
    if isinstance(source, DatasetSource) and source.is_stream:
        raise DataError(f"data.source={config.source} is a stream, without an end; only what has one can be packed")
    words = [source.describe(index) for index in range(len(source))]
    if not isinstance(source, FileSource):
        return Origin(source, words, np.zeros(len(source), np.int64), source.fingerprint())
    fingerprint = source.fingerprint(allow_missing=skips)
    sizes = np.fromiter((file_size(path, allow_missing=skips) for path in words), np.int64, len(words))
    base = Path(config.path or ".")
    prefix = f"{base if base.is_dir() else base.parent}{os.sep}"
    return Origin(source, [path.removeprefix(prefix) for path in words], sizes, fingerprint)


def check_complete(out: Path, config: Data, form: Form, origins: dict[Split, Origin]) -> Pack:
    """Return what a finished pack is; raises `DataError` where packing again would give another one."""
    pack = read_pack(out)
    asked, stands = form.model_dump(), pack.form.model_dump()
    changes = [f"{key} is {stands[key]} in it and {asked[key]} was asked" for key in asked if asked[key] != stands[key]]
    if set(origins) != set(pack.splits):
        changes.append(f"it has {', '.join(pack.splits)} and the source {', '.join(origins)}")
    for split, origin in origins.items():
        changes += _changes(out, pack, split, origin) if split in pack.splits else []
    if list(pack.classes) != list(origins["train"].source.classes):
        changes.append("the classes have other names")
    if changes:
        raise DataError(
            f"{out} is complete, but not what {config.path or config.source} gives now: {'; '.join(changes)}; --force "
            f"packs it again"
        )
    return pack


def _changes(out: Path, pack: Pack, split: Split, origin: Origin) -> Iterator[str]:
    part = pack.splits[split]
    if part.source_fingerprint == origin.fingerprint:
        return
    images = PackedImages(out, pack, split)
    then = dict(zip(images.names(), images.index["source_bytes"].tolist(), strict=True))
    then |= {skipped.name: skipped.source_bytes for skipped in part.skipped}
    now = dict(zip(origin.names, origin.sizes.tolist(), strict=True))
    counts = {
        "added": len(now.keys() - then.keys()),
        "removed": len(then.keys() - now.keys()),
        "of another size": sum(now[name] != then[name] for name in now.keys() & then.keys()),
    }
    words = [f"{count:,} {what}" for what, count in counts.items() if count]
    yield f"{split} has {', '.join(words) or 'other targets, another order or other pixels'}"


def estimate_bytes(origin: Origin, form: Form, *, jobs: int) -> int:
    """Return about how many bytes a split will take, from some of its images."""
    if len(origin) == 0:
        return 0
    chosen = np.unique(np.linspace(0, len(origin) - 1, NUM_SAMPLED).round().astype(int)).tolist()
    before = after = count = 0
    for index, stored in zip(chosen, origin.store_all(chosen, form, jobs=jobs), strict=True):
        if isinstance(stored, Stored):  # errors are told when their turn comes
            after += len(stored.content)
            before += int(origin.sizes[index])
            count += 1
    if form.format == "jpeg" and before:
        return int(after / before * origin.sizes.sum())
    return after * len(origin) // max(count, 1)


def _use_one_thread() -> None:
    torch.set_num_threads(1)


def as_bytes(names: list[str]) -> bytes:
    """Return names, each with a zero at its end."""
    return b"".join(os.fsencode(name) + b"\0" for name in names)
