"""An error of the user's code that ends a run before its first step is distinguished from other errors."""

import errno
import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distrain.config import Recipe, load_recipe
from distrain.data.loading.isolation import make_picklable
from distrain.errors import DataError
from distrain.runs.directory import RunDirectory
from distrain.runs.status import Status
from distrain.runs.user_errors import find_mistake


class TwoArgumentsError(Exception):
    """An exception that cannot be unpickled."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} {second}")


def raised(error: BaseException | str, folder: Path) -> BaseException:
    """Raise an error in a module of the user, and return it as distrain would catch it."""
    sys.modules.pop("users", None)
    what = error if isinstance(error, str) else "raise ERROR"
    (folder / "users.py").write_text(f"ERROR = None\ndef act():\n    {what}\n")
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        module: Any = importlib.import_module("users")
        if not isinstance(error, str):
            module.ERROR = error
        module.act()
    except BaseException as found:  # noqa: BLE001 - it is what is tested
        return without_this_file(found)
    finally:
        sys.path.remove(str(folder))
    raise AssertionError


def without_this_file(error: BaseException) -> BaseException:
    assert error.__traceback__ is not None
    return error.with_traceback(error.__traceback__.tb_next)


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    found = RunDirectory(tmp_path / "run")
    with found.created():
        found.write_status(Status())
    return found


def recipe(name: str = "users:net") -> Recipe:
    return load_recipe("digits", overrides=[f"model.name={name}"])


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError("too\n  wide"), "ValueError before the first step, at "),
        (KeyError("x"), "users.py:3, in act: 'x'"),
        (AssertionError(), "AssertionError before the first step, at "),
        (FileNotFoundError(errno.ENOENT, "No such file", "labels.csv"), "in act: [Errno 2] No such file"),
        (RuntimeError("x" * 9999), "in act: xxx"),
        ("1 +", "users.py:3, in this module: invalid syntax"),
        ("import nowhere_at_all", "in act: No module named 'nowhere_at_all'"),
        ("next(iter([]))", "StopIteration was raised"),
        ("raise SystemExit(0)", "sys.exit(0) was called before the run had finished, at "),
    ],
)
def test_error_of_the_users_code_is_reported_with_its_place(
    tmp_path: Path, run: RunDirectory, error: BaseException | str, words: str
) -> None:
    told = find_mistake(raised(error, tmp_path), recipe(), run, step=0)
    assert told is not None
    assert words in told
    assert f"{tmp_path / 'users.py'}:3" in told
    assert "\n" not in told
    assert len(told) < 700


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to"),
        RuntimeError("CUDA error: device-side assert triggered"),
        OSError(errno.EIO, "Input/output error"),
        ConnectionResetError("Connection reset by peer"),
        KeyboardInterrupt(),
        DataError("it has a sentence of its own"),
        RuntimeError("[gloo/transport/tcp/pair.cc] Connection closed by peer"),
    ],
)
def test_error_that_may_not_recur_is_not_the_users_mistake(
    tmp_path: Path, run: RunDirectory, error: BaseException
) -> None:
    assert find_mistake(raised(error, tmp_path), recipe(), run, step=0) is None


def test_once_something_was_trained_an_error_is_a_failure(tmp_path: Path, run: RunDirectory) -> None:
    error = raised(ValueError("late"), tmp_path)
    assert find_mistake(error, recipe(), run, step=0) is not None
    assert find_mistake(error, recipe(), run, step=1) is None
    status = Status()
    status.begin_attempt(world_size=1, first_step=0)
    status.attempts[0].last_step = 3
    run.write_status(status)
    assert find_mistake(error, recipe(), run, step=0) is None
    run.write_status(Status())
    (run.checkpoints / "step-00000003").mkdir()
    assert find_mistake(error, recipe(), run, step=0) is None


def test_error_of_a_library_is_not_the_users_unless_the_recipe_names_code_of_it(
    tmp_path: Path, run: RunDirectory
) -> None:
    with pytest.raises(ValueError, match="Expecting") as caught:
        json.loads("{")
    assert find_mistake(without_this_file(caught.value), recipe(), run, step=0) is None
    installed = tmp_path / "site-packages"
    installed.mkdir()
    error = raised(ValueError("theirs"), installed)
    assert find_mistake(error, recipe("other:net"), run, step=0) is None
    assert find_mistake(error, recipe(), run, step=0) is not None


@pytest.mark.parametrize("make", [lambda: ValueError("bad"), lambda: TwoArgumentsError("bad", "too")])
def test_place_in_another_process_is_known_where_its_error_arrives(
    tmp_path: Path, run: RunDirectory, make: Callable[[], Exception]
) -> None:
    sent = raised(make(), tmp_path)
    assert isinstance(sent, Exception)
    arrived = make_picklable(sent, where="a loader process").with_traceback(None)
    told = find_mistake(arrived, recipe(), run, step=0)
    assert told is not None
    assert "users.py:3, in act" in told
