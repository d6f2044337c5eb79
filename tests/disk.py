"""A disk of a few megabytes, to be filled."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest


@contextmanager
def small_disk(path: Path, *, mebibytes: int) -> Iterator[Path]:
    """Mount a tmpfs of this size at `path`; skips the test where mounting is not permitted."""
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "distrain-test", str(path)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("needs a small disk, and a tmpfs cannot be mounted here")
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def fill(disk: Path, *, leave_bytes: int = 0) -> Path:
    """Fill the disk with one file, which is returned, up to what is to be left; the rest of a block is never left.

    Others may write to the disk meanwhile: where what was free a moment ago is gone, it is looked up again.
    """
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        while (left := shutil.disk_usage(disk).free - leave_bytes) > 0:
            with suppress(OSError):
                os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), left)
    return filler
