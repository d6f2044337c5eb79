"""Finds the files of weights in a folder by their usual names; imports no torch."""

from pathlib import Path

# Hugging Face's `save_pretrained` and accelerate's `save_state`; with an index where weights are divided among files.
IN_FOLDERS = ("model.safetensors", "pytorch_model.bin")
INDEX = ".index.json"


def is_weights_folder(folder: Path) -> bool:
    """Whether a folder holds weights in the form of Hugging Face's libraries; so does a bundle of distrain."""
    return any((folder / f"{name}{end}").is_file() for name in IN_FOLDERS for end in ("", INDEX))
