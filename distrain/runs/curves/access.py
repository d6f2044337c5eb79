"""Opens the records of a run: from a store, which is brought up to date, or from `metrics.jsonl` alone.

The store of a run lies in its directory, and only its owner uses it there: that of a run of another user, or one that
cannot be written, lies in the user's cache folder. Where neither can be written, all is read each time.
"""

import errno
import os
import shutil
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO

import xxhash

from distrain.errors import RunError
from distrain.runs.curves.layout import StoredBatch
from distrain.runs.curves.parsing import Batch, read_batches
from distrain.runs.curves.store import INDEX, Store
from distrain.runs.directory import RunDirectory
from distrain.system import shared_locks
from distrain.system.caches import cache_folder
from distrain.system.files import NotRegularError, open_regular

UNSTORED_BYTES = 1 << 22  # of metrics.jsonl: a smaller one is read each time
PATIENCE_S = 60.0  # for another process that brings the store up to date
_UNUSED_S = 30 * 86_400.0  # after which the store of a run of another user is deleted
_SPARE = 2  # times the size of what is to be read must be free on the disk


Part = StoredBatch | Batch


@dataclass(frozen=True)
class Parts:
    """The batches of a run in their order, and its metrics in the order in which they appear."""

    batches: list[Part] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)


@contextmanager
def open_parts(run: RunDirectory, *, is_damaged: bool = False, is_stored: bool = True) -> Iterator[Parts]:
    """Yield what the run has recorded so far; nothing where there is no `metrics.jsonl`.

    A store that was found to be damaged is built again. If it may not be used at all, `is_stored` is false.
    """
    with ExitStack() as stack:
        parts = Parts()
        with suppress(FileNotFoundError):
            file = stack.enter_context(_open_metrics(run)).fileno()
            folders = _folders(run) if is_stored and os.fstat(file).st_size >= UNSTORED_BYTES else ()
            parts = _read(file, folders, stack, is_damaged=is_damaged)
        yield parts


def _open_metrics(run: RunDirectory) -> IO[bytes]:
    try:
        return open_regular(run.metrics)
    except NotRegularError:
        raise RunError(f"{run.metrics} is not a file; move it away") from None


def _read(file: int, folders: Iterable[Path], stack: ExitStack, *, is_damaged: bool) -> Parts:
    """Return the batches from the first folder whose store can be used, or from the file alone."""
    for folder in folders:
        with suppress(OSError, shared_locks.LockFileError):
            store, tail = _bring_up_to_date(folder, file, is_damaged=is_damaged)
            stack.callback(store.close)
            return Parts([*store.batches, *tail], _join_keys(store.keys, tail))
    batches = list(read_batches(file))
    return Parts([*batches], _join_keys((), batches))


def _join_keys(keys: Iterable[str], tail: Iterable[Batch]) -> list[str]:
    return list(dict.fromkeys([*keys, *(key for batch in tail for key in batch.columns)]))


def _folders(run: RunDirectory) -> Iterator[Path]:
    """Yield the folders that may contain the store, and are this user's own."""
    with suppress(OSError):
        if _is_own(run.path.resolve()):
            run.curves.mkdir(exist_ok=True)
            if _is_own(run.curves):
                yield run.curves
    caches = cache_folder() / "distrain" / "curves"
    folder = caches / xxhash.xxh3_64_hexdigest(os.fsencode(run.path.resolve()))
    with suppress(OSError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if _is_own(folder):
            _delete_unused(caches)
            yield folder


def _is_own(folder: Path) -> bool:
    status = folder.lstat()
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()


def _delete_unused(caches: Path) -> None:
    for folder in caches.iterdir():
        with suppress(FileNotFoundError):
            if time.time() - (folder / INDEX).stat().st_mtime > _UNUSED_S:
                shutil.rmtree(folder, ignore_errors=True)


def _bring_up_to_date(folder: Path, file: int, *, is_damaged: bool) -> tuple[Store, list[Batch]]:
    """Return the store, and the last batch of the file if it is not whole yet.

    Raises `OSError` where the store cannot be read or written.
    """
    if not is_damaged:
        with suppress(FileNotFoundError), ExitStack() as stack:
            store = Store.open(folder, is_writable=False)
            stack.callback(store.close)
            tail = list(islice(_read_rest(store, file), 1))
            if store.is_of(file) and not any(batch.is_whole for batch in tail):
                stack.pop_all()
                return store, tail
    with _locked(folder / INDEX), ExitStack() as stack:
        store = Store.open(folder, is_writable=True)
        stack.callback(store.close)
        if is_damaged:
            store.drop_from(0)
        store.keep_valid(file)
        tail = _extend(store, folder, file)
        stack.pop_all()
        return store, tail


def _extend(store: Store, folder: Path, file: int) -> list[Batch]:
    """Store what the file has more, and return the last batch if it is not whole yet."""
    if shutil.disk_usage(folder).free < _SPARE * (os.fstat(file).st_size - store.text_end):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
    for batch in _read_rest(store, file):
        if not batch.is_whole:
            return [batch]
        store.append(batch)
    return []


def _read_rest(store: Store, file: int) -> Iterator[Batch]:
    return read_batches(file, start=store.text_end, number=len(store.batches), keys=store.keys)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Have processes take turns, so that they do not do the same work: what they write is right without, too.

    Raises `OSError` where another one works for longer than `PATIENCE_S`.
    """
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
    try:
        lock = shared_locks.lock(path, shared_locks.EXCLUSIVE, patience_s=PATIENCE_S)
    except shared_locks.LockFileError:
        raise
    except shared_locks.LeasesUnavailableError:  # a file system without locks
        yield
        return
    if lock is None:
        raise OSError(errno.EAGAIN, "another process is writing to it", str(path))
    try:
        yield
    finally:
        shared_locks.close(lock)
