"""Processes for which a file system refuses what it is asked: `refusing.c`, loaded before the C library."""

import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest


@functools.cache
def _library() -> Path | None:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        return None
    file = Path(tempfile.mkdtemp(prefix="distrain-test-")) / "refusing.so"
    source = Path(__file__).with_suffix(".c")
    done = subprocess.run(
        [compiler, "-shared", "-fPIC", "-O1", "-o", file, source, "-ldl"], capture_output=True, check=False
    )
    return file if done.returncode == 0 else None


def without_locks(error: int) -> dict[str, str]:
    """Return the variables of a process in which locks fail with this errno."""
    return {"LD_PRELOAD": _preloaded(), "DISTRAIN_NO_LOCKS": str(error)}


def refusing(below: Path, error: int, *, while_exists: Path) -> dict[str, str]:
    """Return the variables of a process whose writes below a folder fail with this errno while a file exists."""
    return {
        "LD_PRELOAD": _preloaded(),
        "DISTRAIN_REFUSE": str(error),
        "DISTRAIN_REFUSE_BELOW": str(below.resolve()),
        "DISTRAIN_REFUSE_WHILE": str(while_exists),
    }


def _preloaded() -> str:
    library = _library()
    if library is None:
        pytest.skip("needs a C compiler, for a library that makes system calls fail")
    return str(library)
