"""Packs any source in its own order: decodes in processes, and resumes where it was stopped."""

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
from distrain.data.packing.journal import Bad, Begun, Draft, Journal, Record, is_full, open_journal, write_synced
from distrain.data.packing.source_files import Origin, as_bytes, check_complete, describe_origin, estimate_bytes
from distrain.data.sources.files import FileSource, open_files
from distrain.data.sources.registry import open_sources
from distrain.errors import DataError
from distrain.messages import MEBIBYTE
from distrain.runs.directory import sync

SHARD_BYTES = 2**30
MAX_SHARDS = 256  # of a split, about: a process that reads it holds a file open for each


class Progress(Protocol):
    """Shows progress in `total` units; what it returns is called for every unit that is done."""

    def __call__(self, words: str, total: int, *, unit: str) -> AbstractContextManager[Callable[[], None]]:
        """Show it while the context lasts."""
        ...


@dataclass(frozen=True)
class Outcome:
    """A pack that is whole: `num_packed` images were stored now, the others of it by earlier runs, in `seconds`.

    `notes` say what of the source was passed over unseen, a sentence each.
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
    """Write the splits of a source to the folder `out`, or resume that; `skips` leaves out broken images.

    `starts_over` discards a pack that was begun or is finished. Raises `DataError` for an image that cannot be
    read, a disk that is or would be full, a finished pack that is not of this source as it is now, and a place that
    is taken.
    """
    begin = time.monotonic()
    draft = out.with_name(f"{out.name}.tmp")
    _check_place(out, config)
    if skips and config.source == "manifest":  # whose rows may name what is not there
        opened = open_files(read_manifest(config, allow_missing=True), config)
    else:
        opened = open_sources(config)
    splits: tuple[Split, ...] = ("train", "val")
    notes = tuple(note for source in opened.values() if isinstance(source, FileSource) for note in source.notes)
    origins = {split: describe_origin(opened[split], config, skips=skips) for split in splits if split in opened}
    try:
        if is_packed(out) and not starts_over and not (draft / "pack").exists():
            if (draft / "journal.jsonl").exists():
                shutil.rmtree(draft)  # the pack was whole, and the process killed before this was gone
            pack = check_complete(out, config, form, origins)
            return Outcome(out, pack, 0, 0.0, was_complete=True, notes=notes)
        estimates = {split: estimate_bytes(origin, form, jobs=jobs) for split, origin in origins.items()}
        begun = Begun(
            form=form,
            shard_bytes=max(SHARD_BYTES, max(estimates.values()) // MAX_SHARDS),
            source=config.source,
            path=config.path,
        )
        out.parent.mkdir(parents=True, exist_ok=True)
        with open_journal(draft, begun, starts_over=starts_over) as journal:
            kept = _keep(journal, origins, skips=skips, progress=progress)
            _check_space(journal, out, sum(estimates.values()))
            num_left = sum(len(origin) for origin in origins.values()) - sum(record.count for record in kept)
            with progress("packing", num_left, unit="images") as advance:
                for split, origin in origins.items():
                    _pack_split(journal, split, origin, jobs=jobs, skips=skips, advance=advance)
            pack = _finish(journal, origins, config)
            _put_in_place(journal, out)
    except OSError as error:
        if is_full(error):
            raise DataError(
                f"the disk of {out} is full; free some room and run the same command again, which goes on where it was"
            ) from None
        raise
    num_packed = sum(part.images for part in pack.splits.values()) - sum(record.images for record in kept)
    return Outcome(out, pack, num_packed, time.monotonic() - begin, notes=notes)


def _check_place(out: Path, config: Data) -> None:
    if is_packed(config.path):
        raise DataError(f"{config.path} is packed already; pack the data that it was made of")
    if config.path is not None and out.resolve().is_relative_to(Path(config.path).resolve()):
        raise DataError(f"the pack {out} would lie in the data {config.path}; name another folder")
    if out.exists() and not is_packed(out) and not (out.is_dir() and not any(out.iterdir())):
        raise DataError(f"{out} is there and no packed dataset; name another folder, or move it away")


def _keep(journal: Journal, origins: dict[Split, Origin], *, skips: bool, progress: Progress) -> list[Record]:
    """Find out what of an unfinished pack still holds, forget the rest, and return the records of it."""
    total = sum(record.bytes for split in origins for record in journal.of_split(split))
    with progress("verifying", total // MEBIBYTE, unit="MiB") as advance:
        count = in_mebibytes(advance)
        kept = {s: list(journal.check(s, origin, skips=skips, advance=count)) for s, origin in origins.items()}
    journal.keep(kept)
    return [record for records in kept.values() for record in records]


def _check_space(journal: Journal, out: Path, estimate: int) -> None:
    there = sum(path.stat().st_size for path in journal.data.iterdir())
    needed, free = estimate - there, shutil.disk_usage(journal.folder).free
    if needed > free:
        raise DataError(
            f"the pack needs about {needed / MEBIBYTE:,.1f} MiB more, and the disk of {out} has {free / MEBIBYTE:,.1f} "
            f"MiB left; free some room, or make images smaller with --size"
        )


def _pack_split(
    journal: Journal, split: Split, origin: Origin, *, jobs: int, skips: bool, advance: Callable[[], None]
) -> None:
    form, records = journal.begun.form, journal.of_split(split)
    is_one_file = form.format == "pixels"
    first = sum(record.count for record in records)
    if first == len(origin) and all(record.is_closed for record in records):
        return

    def begin(number: int, offset: int, first: int) -> Draft:
        file = f"{split}-{0 if is_one_file else number:05d}.bin"
        return Draft(journal, origin, split=split, number=number, file=file, offset=offset, first=first)

    if records and not records[-1].is_closed:
        *_, last = records
        draft = begin(last.number, last.offset, last.first)
    else:
        draft = begin(len(records), sum(record.bytes for record in records) if is_one_file else 0, first)
    indices = range(first, len(origin))
    stored_images = origin.store_all(indices, form, jobs=jobs)
    try:
        for index, stored in zip(indices, stored_images, strict=True):
            if isinstance(stored, BrokenImageError):
                if not skips:
                    raise DataError(f"{stored}, then run the same command again, which goes on; or add --skip-bad")
                draft.skip(Bad(index=index, reason=str(stored)))
            elif isinstance(stored, DataError):
                raise stored
            else:
                if draft.bytes and draft.bytes + len(stored.content) > journal.begun.shard_bytes:
                    draft = _begin_next(draft, begin, index, is_one_file=is_one_file)
                draft.add(stored, source_bytes=int(origin.sizes[index]))
            advance()
        draft.save(is_closed=True)
    except BaseException:
        with suppress(OSError):  # a full disk, perhaps: then what was saved before holds
            draft.save()
        raise
    finally:
        stored_images.close()
        draft.close()


def _begin_next(draft: Draft, begin: Callable[[int, int, int], Draft], index: int, *, is_one_file: bool) -> Draft:
    draft.save(is_closed=True)
    following = begin(draft.number + 1, draft.offset + draft.bytes if is_one_file else 0, index)
    draft.close()
    return following


def _finish(journal: Journal, origins: dict[Split, Origin], config: Data) -> Pack:
    """Write the arrays and pack.json of what is all on the disk."""
    first = origins["train"].source
    pack = Pack(
        form=journal.begun.form,
        source=config.source,
        path=config.path,
        target=first.target,
        classes=tuple(first.classes),
        splits={split: _finish_split(journal, split, origin) for split, origin in origins.items()},
    )
    write_synced(journal.data / HEADER, header_text(pack).encode())
    return pack


def _finish_split(journal: Journal, split: Split, origin: Origin) -> PackedSplit:
    records = journal.of_split(split)
    skipped = [bad for record in records for bad in record.skipped]
    kept = np.ones(len(origin), bool)
    kept[[bad.index for bad in skipped]] = False
    index = np.frombuffer(b"".join(journal.rows(record) for record in records), INDEX)
    shapes = np.unique(index[["channels", "height", "width"]])
    names = [name for name, is_kept in zip(origin.names, kept.tolist(), strict=True) if is_kept]
    arrays: dict[Array, NDArray[np.generic]] = {
        "index": index,
        "targets": origin.source.targets.numpy()[kept],
        "names": np.frombuffer(as_bytes(names), np.uint8),
    }
    files = {array: _write_array(journal.data / array_name(split, array), value) for array, value in arrays.items()}
    num_changed = sum(record.num_changed for record in records)
    digests = [record.digest for record in records] + [file.digest for file in files.values()]
    is_exact = not num_changed and not skipped
    return PackedSplit(
        images=len(index),
        shape=tuple(map(int, shapes[0])) if len(shapes) == 1 else None,
        source_bytes=int(origin.sizes.sum()),
        num_changed=num_changed,
        skipped=tuple(_skipped(bad, origin) for bad in skipped),
        shards=tuple(_shard(record) for record in records),
        arrays=files,
        source_fingerprint=origin.fingerprint,
        fingerprint=origin.fingerprint if is_exact else xxhash.xxh3_128(" ".join(digests).encode()).hexdigest(),
    )


def _shard(record: Record) -> Shard:
    return Shard(file=record.file, offset=record.offset, bytes=record.bytes, images=record.images, digest=record.digest)


def _skipped(bad: Bad, origin: Origin) -> Skipped:
    return Skipped(name=origin.names[bad.index], source_bytes=int(origin.sizes[bad.index]), reason=bad.reason)


def _write_array(path: Path, array: NDArray[np.generic]) -> ArrayFile:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, version=(1, 0), allow_pickle=False)
    content = stream.getvalue()
    write_synced(path, content)
    return ArrayFile(bytes=len(content), digest=xxhash.xxh3_128(content).hexdigest())


def _put_in_place(journal: Journal, out: Path) -> None:
    """Rename the pack to its place; one that stands there is put aside first, and deleted after."""
    if out.exists():
        shutil.rmtree(journal.folder / "old", ignore_errors=True)
        out.replace(journal.folder / "old")
    journal.data.replace(out)
    sync(out.parent)
    shutil.rmtree(journal.folder)
