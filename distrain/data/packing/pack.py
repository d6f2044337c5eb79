"""Packs any source in its own order: decodes in processes, and resumes after a stop."""

import io
import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import xxhash
from numpy.typing import NDArray

from distrain.config.data import Data, Split
from distrain.data.layout.manifest import read_manifest
from distrain.data.packing.encode import BrokenImageError
from distrain.data.packing.format import (
    HEADER,
    INDEX,
    Array,
    ArrayFile,
    Form,
    Pack,
    PackedSplit,
    Shard,
    Skipped,
    array_name,
    header_text,
    in_mebibytes,
    is_packed,
)
from distrain.data.packing.journal import (
    Journal,
    PackSettings,
    Record,
    ShardWriter,
    SkippedSample,
    is_full,
    open_journal,
    write_synced,
)
from distrain.data.packing.source_files import SourceSplit, as_bytes, check_complete, describe_split, estimate_bytes
from distrain.data.sources.files import FileSource, open_files
from distrain.data.sources.registry import open_sources
from distrain.errors import DataError
from distrain.messages import MEBIBYTE
from distrain.system.files import sync

SHARD_BYTES = 2**30
MAX_SHARDS = 256  # of a split, approximately: a process that reads it has a file open for each


class Progress(Protocol):
    """Shows progress in `total` units; the function that it returns is called after each unit."""

    def __call__(self, title: str, total: int, *, unit: str) -> AbstractContextManager[Callable[[], None]]:
        """Show it while the context lasts."""
        ...


@dataclass(frozen=True)
class Outcome:
    """A complete pack: `num_packed` images were stored now, in `seconds`, and the others earlier.

    `notes` report, one sentence each, what was skipped in the source.
    """

    folder: Path
    pack: Pack
    num_packed: int
    seconds: float
    was_complete: bool = False
    notes: tuple[str, ...] = ()


def pack_dataset(
    config: Data, out: Path, form: Form, *, jobs: int, skips: bool, starts_over: bool, progress: Progress
) -> Outcome:
    """Write the splits of a source to the folder `out`, or resume doing so; with `skips`, broken images are skipped.

    `starts_over` discards an unfinished or finished pack. Raises `DataError` for an image that cannot be read, a disk
    that is or would be full, a finished pack that does not match the source, and an `out` that is used otherwise.
    """
    started = time.monotonic()
    work = out.with_name(f"{out.name}.tmp")
    _check_place(out, config)
    if skips and config.source == "manifest":  # its rows may name missing files
        opened = open_files(read_manifest(config, allow_missing=True), config)
    else:
        opened = open_sources(config)
    if opened["train"].target == "mask":
        raise DataError("a pack holds images without masks; train from the folder of images and masks")
    splits: tuple[Split, ...] = ("train", "val")
    notes = tuple(note for source in opened.values() if isinstance(source, FileSource) for note in source.notes)
    sources = {split: describe_split(opened[split], config, skips=skips) for split in splits if split in opened}
    try:
        if is_packed(out) and not starts_over and not (work / "pack").exists():
            if (work / "journal.jsonl").exists():
                shutil.rmtree(work)  # the process was killed between completing the pack and this removal
            pack = check_complete(out, config, form, sources)
            return Outcome(out, pack, 0, 0.0, was_complete=True, notes=notes)
        estimates = {split: estimate_bytes(samples, form, jobs=jobs) for split, samples in sources.items()}
        settings = PackSettings(
            form=form,
            shard_bytes=max(SHARD_BYTES, max(estimates.values()) // MAX_SHARDS),
            source=config.source,
            path=config.path,
        )
        out.parent.mkdir(parents=True, exist_ok=True)
        with open_journal(work, settings, starts_over=starts_over) as journal:
            kept = _keep(journal, sources, skips=skips, progress=progress)
            _check_space(journal, out, sum(estimates.values()))
            num_left = sum(len(samples) for samples in sources.values()) - sum(record.count for record in kept)
            with progress("packing", num_left, unit="images") as advance:
                for split, samples in sources.items():
                    _pack_split(journal, split, samples, jobs=jobs, skips=skips, advance=advance)
            pack = _finish(journal, sources, config)
            _move_into_place(journal, out)
    except OSError as error:
        if is_full(error):
            raise DataError(
                f"the disk of {out} is full; free some space and run the same command again, which resumes"
            ) from None
        raise
    num_packed = sum(part.images for part in pack.splits.values()) - sum(record.images for record in kept)
    return Outcome(out, pack, num_packed, time.monotonic() - started, notes=notes)


def _check_place(out: Path, config: Data) -> None:
    if is_packed(config.path):
        raise DataError(f"{config.path} is packed already; pack its source instead")
    if config.path is not None and out.resolve().is_relative_to(Path(config.path).resolve()):
        raise DataError(f"the pack {out} would be inside the data {config.path}; use another folder")
    if out.exists() and not is_packed(out) and not (out.is_dir() and not any(out.iterdir())):
        raise DataError(f"{out} exists and is not a packed dataset; use another folder, or move it away")


def _keep(journal: Journal, sources: dict[Split, SourceSplit], *, skips: bool, progress: Progress) -> list[Record]:
    """Return the valid records of an unfinished pack, and remove everything else."""
    total = sum(record.bytes for split in sources for record in journal.of_split(split))
    with progress("verifying", total // MEBIBYTE, unit="MiB") as advance:
        count = in_mebibytes(advance)
        kept = {s: list(journal.check(s, samples, skips=skips, advance=count)) for s, samples in sources.items()}
    journal.keep(kept)
    return [record for records in kept.values() for record in records]


def _check_space(journal: Journal, out: Path, estimate: int) -> None:
    written = sum(path.stat().st_size for path in journal.data.iterdir())
    needed, free = estimate - written, shutil.disk_usage(journal.folder).free
    if needed > free:
        raise DataError(
            f"the pack needs about {needed / MEBIBYTE:,.1f} MiB more, but the disk of {out} has {free / MEBIBYTE:,.1f} "
            f"MiB left; free some space, or make images smaller with --size"
        )


def _pack_split(
    journal: Journal, split: Split, samples: SourceSplit, *, jobs: int, skips: bool, advance: Callable[[], None]
) -> None:
    form, records = journal.settings.form, journal.of_split(split)
    is_one_file = form.format == "pixels"
    first = sum(record.count for record in records)
    if first == len(samples) and all(record.is_closed for record in records):
        return

    def open_shard(number: int, offset: int, first: int) -> ShardWriter:
        file = f"{split}-{0 if is_one_file else number:05d}.bin"
        return ShardWriter(journal, samples, split=split, number=number, file=file, offset=offset, first=first)

    if records and not records[-1].is_closed:
        *_, last = records
        writer = open_shard(last.number, last.offset, last.first)
    else:
        writer = open_shard(len(records), sum(record.bytes for record in records) if is_one_file else 0, first)
    indices = range(first, len(samples))
    stored_images = samples.store_all(indices, form, jobs=jobs)
    try:
        for index, stored in zip(indices, stored_images, strict=True):
            if isinstance(stored, BrokenImageError):
                if not skips:
                    raise DataError(f"{stored}, then run the same command again, which resumes; or add --skip-bad")
                writer.skip(SkippedSample(index=index, reason=str(stored)))
            elif isinstance(stored, DataError):
                raise stored
            else:
                if writer.bytes and writer.bytes + len(stored.content) > journal.settings.shard_bytes:
                    writer = _open_next(writer, open_shard, index, is_one_file=is_one_file)
                writer.add(stored, source_bytes=int(samples.sizes[index]))
            advance()
        writer.save(is_closed=True)
    except BaseException:
        with suppress(OSError):  # for example a full disk: what was saved earlier remains valid
            writer.save()
        raise
    finally:
        stored_images.close()
        writer.close()


def _open_next(
    writer: ShardWriter, open_shard: Callable[[int, int, int], ShardWriter], index: int, *, is_one_file: bool
) -> ShardWriter:
    writer.save(is_closed=True)
    following = open_shard(writer.number + 1, writer.offset + writer.bytes if is_one_file else 0, index)
    writer.close()
    return following


def _finish(journal: Journal, sources: dict[Split, SourceSplit], config: Data) -> Pack:
    """Write the arrays and pack.json, once all shards are on disk."""
    first = sources["train"].source
    pack = Pack(
        form=journal.settings.form,
        source=config.source,
        path=config.path,
        target=first.target,
        classes=tuple(first.classes),
        splits={split: _finish_split(journal, split, samples) for split, samples in sources.items()},
    )
    write_synced(journal.data / HEADER, header_text(pack).encode())
    return pack


def _finish_split(journal: Journal, split: Split, samples: SourceSplit) -> PackedSplit:
    records = journal.of_split(split)
    skipped = [bad for record in records for bad in record.skipped]
    kept = np.ones(len(samples), bool)
    kept[[bad.index for bad in skipped]] = False
    index = np.frombuffer(b"".join(journal.rows(record) for record in records), INDEX)
    shapes = np.unique(index[["channels", "height", "width"]])
    names = [name for name, is_kept in zip(samples.names, kept.tolist(), strict=True) if is_kept]
    arrays: dict[Array, NDArray[np.generic]] = {
        "index": index,
        "targets": samples.source.targets.numpy()[kept],
        "names": np.frombuffer(as_bytes(names), np.uint8),
    }
    files = {array: _write_array(journal.data / array_name(split, array), value) for array, value in arrays.items()}
    num_changed = sum(record.num_changed for record in records)
    digests = [record.digest for record in records] + [file.digest for file in files.values()]
    is_exact = not num_changed and not skipped
    return PackedSplit(
        images=len(index),
        shape=tuple(map(int, shapes[0])) if len(shapes) == 1 else None,
        source_bytes=int(samples.sizes.sum()),
        num_changed=num_changed,
        skipped=tuple(_skipped(bad, samples) for bad in skipped),
        shards=tuple(_shard(record) for record in records),
        arrays=files,
        source_fingerprint=samples.fingerprint,
        fingerprint=samples.fingerprint if is_exact else xxhash.xxh3_128(" ".join(digests).encode()).hexdigest(),
    )


def _shard(record: Record) -> Shard:
    return Shard(file=record.file, offset=record.offset, bytes=record.bytes, images=record.images, digest=record.digest)


def _skipped(bad: SkippedSample, samples: SourceSplit) -> Skipped:
    return Skipped(name=samples.names[bad.index], source_bytes=int(samples.sizes[bad.index]), reason=bad.reason)


def _write_array(path: Path, array: NDArray[np.generic]) -> ArrayFile:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, version=(1, 0), allow_pickle=False)
    content = stream.getvalue()
    write_synced(path, content)
    return ArrayFile(bytes=len(content), digest=xxhash.xxh3_128(content).hexdigest())


def _move_into_place(journal: Journal, out: Path) -> None:
    """Rename the pack to `out`; an existing pack is moved aside first, and deleted afterwards."""
    if out.exists():
        shutil.rmtree(journal.folder / "old", ignore_errors=True)
        out.replace(journal.folder / "old")
    journal.data.replace(out)
    sync(out.parent)
    shutil.rmtree(journal.folder)
