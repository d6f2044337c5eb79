"""Writes the plain model's weights and buffers into one safetensors file for other programs."""

import json
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save

from distrain.checkpoint.load import read_model
from distrain.errors import CheckpointError
from distrain.runs.checkpoints.paths import STATE, step_of
from distrain.system.files import whole_file
from distrain.system.filesystem import explain


def consolidate(path: Path, file: Path, *, recipe_name: str) -> int:
    """Write the model of a verified checkpoint to `file` and return its size in bytes.

    The file is written completely or not at all. Its metadata has `step`, `recipe` and, as JSON, `classes`. Raises
    `CheckpointError` if the checkpoint names code that reading it would run, or if the file cannot be written.
    """
    classes = json.loads((path / STATE).read_text(encoding="utf-8")).get("classes")
    metadata = {"format": "pt", "step": str(step_of(path)), "recipe": recipe_name}
    if classes is not None:
        metadata["classes"] = json.dumps(classes)
    try:
        with whole_file(file) as draft:
            draft.write_bytes(save(read_model(path), metadata))  # save_file would make it readable only by its owner
    except SafetensorError as error:
        raise CheckpointError(f"{file} could not be written: {error}") from error
    except OSError as error:
        raise CheckpointError(f"could not be written: {explain(error) or error}") from error
    return file.stat().st_size
