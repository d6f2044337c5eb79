"""Owns the one file for other programs: the plain model's weights and buffers as safetensors."""

import json
import os
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save

from distrain.checkpoint.folder import STATE, step_of
from distrain.checkpoint.load import read_model
from distrain.errors import CheckpointError


def consolidate(path: Path, file: Path, *, recipe_name: str) -> int:
    """Write the model of a verified checkpoint to `file` and return its size in bytes.

    The file appears whole or not at all. Its metadata holds `step`, `recipe` and, as JSON, `classes`. Raises
    `CheckpointError` where the checkpoint names what could run code, or the file cannot be written.
    """
    classes = json.loads((path / STATE).read_text()).get("classes")
    metadata = {"format": "pt", "step": str(step_of(path)), "recipe": recipe_name}
    if classes is not None:
        metadata["classes"] = json.dumps(classes)
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        draft.write_bytes(save(read_model(path), metadata))  # save_file would leave it to its owner alone
        with draft.open("rb") as written:
            os.fsync(written.fileno())
        draft.replace(file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file} could not be written: {error}") from error
    finally:
        draft.unlink(missing_ok=True)
    return file.stat().st_size
