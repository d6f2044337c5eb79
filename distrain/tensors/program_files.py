"""Recognises files in which torch saved a program: code and tensors together, which readers of tensors refuse."""

import zipfile
from contextlib import suppress
from pathlib import Path, PurePosixPath

_LOADERS = {  # by a file in the archive: the kind of program, and how to read its tensors
    "constants.pkl": ("TorchScript", "torch.jit.load({file!r}).state_dict()"),
    "archive_format": ("torch.export", "torch.export.load({file!r}).state_dict"),
}


def describe_program(path: Path) -> str | None:
    """Describe a file of a program and how to get its tensors; None for any other file."""
    names = set[str]()
    with suppress(OSError, zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
        names = {PurePosixPath(name).name for name in archive.namelist()}
    for name, (kind, loader) in _LOADERS.items():
        if name in names:
            tensors = loader.format(file=path.name)
            return (
                f"a {kind} program, which contains code beside its tensors, and is refused; if you trust it, save the "
                f"tensors only: torch.save({tensors}, 'weights.pth')"
            )
    return None
