"""Libraries have a place for their caches also where the user has no home, or may not write to it."""

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


def test_home_that_can_be_written_is_left_alone(tmp_path: Path) -> None:
    assert provided(HOME=str(tmp_path)) == [str(tmp_path), "-", "-", "-"]
    assert provided(HOME=str(tmp_path), XDG_CACHE_HOME="/proc/x")[0] == str(tmp_path)


def test_missing_home_is_the_users_own() -> None:
    assert provided()[0] == pwd.getpwuid(os.getuid()).pw_dir


@pytest.mark.parametrize("home", ["/proc/nowhere", "/proc"])
def test_home_that_cannot_be_written_has_its_caches_elsewhere(home: str) -> None:
    kept, caches, matplotlib, torch = provided(HOME=home)
    assert kept == home
    assert os.access(caches, os.W_OK)
    assert matplotlib.startswith(caches)
    assert torch == "-"
