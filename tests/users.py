"""Runs functions and programs as another user, `nobody`, where the tests run as root."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

NOBODY = 65534
_CAPABILITY = "+dac_read_search"  # to read an interpreter in root's home folder; it gives no right to write


def as_nobody(function: Callable[[], object]) -> str:
    """Call a function in a fork that has the rights of nobody; returns its result, or its exception, as text."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to be another user")
    reader, writer = os.pipe()
    if (pid := os.fork()) == 0:
        text = "interrupted"
        try:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            text = str(function())
        except Exception as error:  # noqa: BLE001 - the test looks at it
            text = f"{type(error).__name__}: {error}"
        finally:
            os.write(writer, text.encode())
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, encoding="utf-8") as result:
        text = result.read()
    os.waitpid(pid, 0)
    return text


def under_nobody() -> list[str]:
    """Return the words before a command that run it as nobody, who can read the interpreter."""
    ids = [f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    under = ["setpriv", *ids, f"--inh-caps={_CAPABILITY}", f"--ambient-caps={_CAPABILITY}"]
    if shutil.which("setpriv") is None or subprocess.run([*under, "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs root and setpriv, to run as another user")
    return under


@contextmanager
def public_folder() -> Iterator[Path]:
    """Yield a folder that every user can reach, unlike those of pytest."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)
