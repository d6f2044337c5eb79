"""Owns the one file for other programs: the plain model's weights and buffers as safetensors."""

import json
import os
from pathlib import Path

from safetensors.torch import save_file

from distrain.checkpoint.folder import STATE, step_of
from distrain.checkpoint.load import read_model
from distrain.checkpoint.verify import find_fault
from distrain.errors import CheckpointError, RunError


def consolidate(path: Path, file: Path, *, recipe_name: str) -> int:
    """Write the model of the checkpoint at `path` to `file` and return its size in bytes.

    The checkpoint is verified first, and the file appears whole or not at all. Its metadata holds `step`, `recipe` and,
    as JSON, `classes`. Raises `RunError` where the file cannot stand there, `CheckpointError` for a bad checkpoint.
    """
    if file.suffix != ".safetensors":
        raise RunError(f"{file} does not end in .safetensors")
    if file.exists():
        raise RunError(f"{file} exists; name another file")
    if not file.absolute().parent.is_dir():
        raise RunError(f"folder {file.absolute().parent} does not exist")
    if fault := find_fault(path):
        raise CheckpointError(f"checkpoint {path} is not used: {fault}")
    classes = json.loads((path / STATE).read_text()).get("classes")
    metadata = {"format": "pt", "step": str(step_of(path)), "recipe": recipe_name}
    if classes is not None:
        metadata["classes"] = json.dumps(classes)
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        save_file(read_model(path), draft, metadata=metadata)
        with draft.open("rb") as written:
            os.fsync(written.fileno())
        draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)
    return file.stat().st_size
