"""Verifies and commits checkpoints by a manifest with the digest of every file, and quarantines damaged ones."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import xxhash

from distrain.runs.checkpoints.paths import MANIFEST, METADATA, STATE, Checkpoint, committed, read, step_of
from distrain.system.files import sync, write_atomically

_CHUNK_BYTES = 1 << 22

Manifest = dict[str, dict[str, Any]]  # by file name: its size in `bytes` and its digest in `xxh3_128`


def latest_valid(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest checkpoint whose files all match their digests, and a message on each damaged newer one.

    Damaged checkpoints are moved to `quarantine/` beside them, so that they are checked only once and not lost.
    """
    messages: list[str] = []
    for path in reversed(committed(folder)):
        fault = find_corruption(path)
        if fault is None:
            return read(path), messages
        quarantine = folder / "quarantine" / path.name
        try:
            shutil.rmtree(quarantine, ignore_errors=True)
            quarantine.parent.mkdir(exist_ok=True)
            path.replace(quarantine)
            place = f"it was moved to {quarantine}"
        except OSError as error:
            place = f"it could not be moved to {quarantine}: {error.strerror}"
        messages.append(f"checkpoint {path.name} is not used: {fault}; {place}")
    return None, messages


def find_corruption(path: Path, *, advance: Callable[[int], None] | None = None) -> str | None:
    """Return what is wrong with a checkpoint's files, or None; reads every byte of them.

    `advance` is called with the number of bytes of each chunk that was read, for a progress bar.
    """
    try:
        listed = {name: (entry["bytes"], entry["xxh3_128"]) for name, entry in read_manifest(path).items()}
    except FileNotFoundError:
        return f"it has no {MANIFEST}"
    except OSError as error:
        return f"its {MANIFEST} cannot be read: {error.strerror}"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"its {MANIFEST} is not valid"
    if not {STATE, METADATA} <= listed.keys():
        return f"its {MANIFEST} does not list {STATE} and {METADATA}"
    for name, (size, digest) in listed.items():
        file = path / name
        try:
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != size:
                return f"{name} has {file.stat().st_size} bytes instead of {size}"
            if _digest(file, advance) != digest:
                return f"{name} has changed since it was written"
        except OSError as error:  # a failing disk
            return f"{name} cannot be read: {error.strerror}"
    try:
        step = json.loads((path / STATE).read_text(encoding="utf-8"))["step"]
    except (OSError, ValueError, KeyError, TypeError):
        return f"its {STATE} is not valid"
    return None if step == step_of(path) else f"it contains step {step}, not the step in its name"


def read_manifest(path: Path) -> Manifest:
    """Return the manifest of a checkpoint; raises `OSError`, or `ValueError` and similar errors if it is damaged."""
    manifest: Manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))["files"]
    return manifest


def describe_files(files: list[Path]) -> Manifest:
    """Return the manifest entries of these files."""
    return {file.name: {"bytes": file.stat().st_size, "xxh3_128": _digest(file, None)} for file in files}


def commit(draft: Path, final: Path, *, state: str, shards: Manifest) -> None:
    """Add state and manifest to a draft whose shards are on disk, and rename it to its final name."""
    write_atomically(draft / STATE, state)
    manifest = {**shards, **describe_files([draft / STATE, draft / METADATA])}
    write_atomically(draft / MANIFEST, json.dumps({"files": manifest}, indent=1))
    for path in (draft / STATE, draft / METADATA, draft / MANIFEST, draft):
        sync(path)
    draft.replace(final)
    sync(final.parent)


def _digest(path: Path, advance: Callable[[int], None] | None) -> str:
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            if advance is not None:
                advance(len(chunk))
    return digest.hexdigest()
