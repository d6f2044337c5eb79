"""Files that others can write: whatever is in their place, reading one ends at once, and reads nothing else."""

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from distrain.errors import RunError
from distrain.system.files import MAX_BYTES, NotRegularError, open_regular, read_regular, read_whole, texts_of


def _socket(path: Path) -> None:
    folder = Path.cwd()
    os.chdir(path.parent)  # the path of a socket has 107 characters at most
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path.name)
    finally:
        os.chdir(folder)


PLACED: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "socket": _socket,
    "folder": Path.mkdir,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "link": lambda path: path.symlink_to(path.with_name("secret")),
    "loop": lambda path: path.symlink_to(path),
    "nowhere": lambda path: path.symlink_to("/nonexistent/file"),
}


@pytest.fixture(params=PLACED)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    (tmp_path / "secret").write_text('{"secret": 1}')
    PLACED[request.param](tmp_path / "file")
    return tmp_path / "file"


def test_what_is_not_a_file_is_not_read(path: Path) -> None:
    for read in (open_regular, read_regular):
        with pytest.raises(NotRegularError):
            read(path)
    with pytest.raises(RunError, match="damaged"):
        read_whole(path, json.loads)
    assert list(texts_of([path])) == []


def test_a_file_that_is_far_too_large_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(RunError, match="damaged"):
        read_whole(tmp_path / "file", json.loads)
    assert list(texts_of([tmp_path / "file"])) == []


def test_json_that_is_nested_too_deeply_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("[" * 100_000)
    with pytest.raises(RunError, match="damaged"):
        read_whole(tmp_path / "file", json.loads)
