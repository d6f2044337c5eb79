"""Libraries have a cache folder even where the user has no home directory, or cannot write to it."""

import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest

PRINT = """
import os
import pwd
from distrain.system.caches import provide_caches
provide_caches()
print(*(os.environ.get(name, "-") for name in ("HOME", "XDG_CACHE_HOME", "MPLCONFIGDIR", "TORCH_HOME")), sep="\\n")
"""


def provided(**environment: str) -> list[str]:
    names = ("HOME", "XDG_CACHE_HOME", "MPLCONFIGDIR", "TORCH_HOME")
    inherited = {name: value for name, value in os.environ.items() if name not in names}
    done = subprocess.run(
        [sys.executable, "-c", PRINT], env={**inherited, **environment}, capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


def test_writable_home_is_not_changed(tmp_path: Path) -> None:
    assert provided(HOME=str(tmp_path)) == [str(tmp_path), "-", "-", "-"]
    assert provided(HOME=str(tmp_path), XDG_CACHE_HOME="/proc/x")[0] == str(tmp_path)


def test_missing_home_is_set_to_that_of_the_user() -> None:
    assert provided()[0] == pwd.getpwuid(os.getuid()).pw_dir


@pytest.mark.parametrize("home", ["/proc/nowhere", "/proc"])
def test_caches_of_a_home_that_is_not_writable_are_elsewhere(home: str) -> None:
    kept, caches, matplotlib, torch = provided(HOME=home)
    assert kept == home
    assert os.access(caches, os.W_OK)
    assert matplotlib.startswith(caches)
    assert torch == "-"
