"""Writes bundles and single files for other programs atomically."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save

from distrain.checkpoint.tensors import Tensors
from distrain.config.user_code import OBJECTS
from distrain.errors import BundleError, ExportError
from distrain.export.bundle import CLASS_INDICES, WEIGHTS, Bundle, load
from distrain.runs.directory import BUNDLE
from distrain.system import files
from distrain.system.files import sync
from distrain.system.filesystem import explain, name_path
from distrain.tensors.module_state import split


def write_bundle(bundle: Bundle, folder: Path) -> None:
    """Write a bundle to a temporary folder, verify it, and rename it; an existing bundle is replaced.

    Raises `ExportError` where it cannot be written, and `BundleError` where nobody could load it.
    """
    if f"{OBJECTS}:" in (content := files.to_json(bundle.description)):
        raise BundleError(
            "the network or its transforms were given by value, as Python objects that only their run has; use the "
            "format torch, onnx or safetensors, or define them in a module"
        )
    draft, old = _draft_of(folder), folder.with_name(f".{os.getpid()}.old.{folder.name}")
    try:
        draft.mkdir(parents=True)
        tensors = {n: t.cpu() for n, t in split(bundle.model)[0].items()} | bundle.extra_state
        save_tensors(tensors, draft / WEIGHTS, {"format": "pt"})
        (draft / BUNDLE).write_text(content, encoding="utf-8")
        indices = {str(index): name for index, name in enumerate(bundle.classes)}
        (draft / CLASS_INDICES).write_text(_readable_json(indices), encoding="utf-8")
        load(draft)  # verifies the digest of what was written
        for file in draft.iterdir():
            sync(file)
        if folder.exists():
            folder.replace(old)
        try:
            draft.replace(folder)
        except OSError:
            old.replace(folder)
            raise
    except OSError as error:
        raise ExportError(f"could not be written: {explain(name_path(error, folder)) or error}") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def save_tensors(tensors: Tensors, file: Path, metadata: dict[str, str]) -> None:
    """Write a safetensors file; tensors that share memory are written one by one. Raises `ExportError`."""
    try:
        # save_file would write a file that only its owner can read, whatever the umask
        file.write_bytes(save({name: t.detach().clone().contiguous() for name, t in tensors.items()}, metadata))
    except (OSError, SafetensorError) as error:
        reason = (explain(name_path(error, file)) if isinstance(error, OSError) else None) or error
        raise ExportError(f"could not be written: {reason}") from error


@contextmanager
def whole_file(file: Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of `file`, which is renamed to `file` at the end if nothing fails."""
    try:
        with files.whole_file(file) as draft:
            yield draft
    except OSError as error:
        raise ExportError(f"could not be written: {explain(error) or error}") from error


def _readable_json(names: dict[str, str]) -> str:
    """Return JSON with names unescaped where all are text; names from files that are not UTF-8 are escaped."""
    is_text = not any("\ud800" <= character <= "\udfff" for name in names.values() for character in name)
    return json.dumps(names, indent=4, ensure_ascii=not is_text)


def _draft_of(path: Path) -> Path:
    return path.with_name(f".{os.getpid()}.{path.name}")  # keeps the suffix, which torch.export checks
