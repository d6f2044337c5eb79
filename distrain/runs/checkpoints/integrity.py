"""Verifies checkpoints: the manifest with every file's digest, the commit, and what becomes of a bad one."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import xxhash

from distrain.runs.checkpoints.paths import MANIFEST, METADATA, STATE, Checkpoint, committed, read, step_of
from distrain.runs.directory import sync, write_atomically

_CHUNK_BYTES = 1 << 22

Manifest = dict[str, dict[str, Any]]  # by file name: its size in `bytes` and its digest in `xxh3_128`


def latest_valid(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest checkpoint whose files all have their digests, and what was wrong with the newer ones.

    What is wrong is moved to `quarantine/` beside it, so that it is looked at once and not lost.
    """
    complaints: list[str] = []
    for path in reversed(committed(folder)):
        fault = find_corruption(path)
        if fault is None:
            return read(path), complaints
        quarantine = folder / "quarantine" / path.name
        try:
            shutil.rmtree(quarantine, ignore_errors=True)
            quarantine.parent.mkdir(exist_ok=True)
            path.replace(quarantine)
            place = f"it was moved to {quarantine}"
        except OSError as error:
            place = f"it could not be moved to {quarantine}: {error.strerror}"
        complaints.append(f"checkpoint {path.name} is not used: {fault}; {place}")
    return None, complaints


def find_corruption(path: Path, *, advance: Callable[[int], None] | None = None) -> str | None:
    """Return what is wrong with a checkpoint's files, or None; every byte of it is read.

    `advance` is told the number of bytes after each piece that was read, for a progress bar.
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
                return f"{name} has {file.stat().st_size} bytes and should have {size}"
            if _digest(file, advance) != digest:
                return f"{name} has other bytes than were written"
        except OSError as error:  # a disk that fails
            return f"{name} cannot be read: {error.strerror}"
    try:
        step = json.loads((path / STATE).read_text(encoding="utf-8"))["step"]
    except (OSError, ValueError, KeyError, TypeError):
        return f"its {STATE} is not valid"
    return None if step == step_of(path) else f"it holds step {step}, not the one it is named after"


def read_manifest(path: Path) -> Manifest:
    """Return the manifest of a checkpoint; raises `OSError`, or `ValueError` and its like if it is damaged."""
    manifest: Manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))["files"]
    return manifest


def describe_files(files: list[Path]) -> Manifest:
    """Return the part of a manifest that these files make."""
    return {file.name: {"bytes": file.stat().st_size, "xxh3_128": _digest(file, None)} for file in files}


def commit(draft: Path, final: Path, *, state: str, shards: Manifest) -> None:
    """Add state and manifest to a draft whose shards are on disk, and give it its name in one step."""
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
