"""A file system error is one sentence: the path, the reason, the owner, and what to do."""

import errno
import os
from pathlib import Path

import pytest

from distrain.errors import ExitCode
from distrain.system import filesystem
from tests.disk import fill, small_disk
from tests.users import as_nobody, public_folder


def refused(error: OSError) -> str:
    sentence = filesystem.explain(error)
    assert sentence is not None
    return sentence


def test_full_disk_is_named_with_its_free_space(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", mebibytes=1) as disk:
        fill(disk)
        with pytest.raises(OSError, match="No space") as raised:
            (disk / "file").write_bytes(bytes(1 << 20))
        sentence = refused(filesystem.name_path(raised.value, disk / "file"))
        assert sentence.startswith(f"{disk}/file: the disk is full (0.0 MiB are free); free some space")
        assert filesystem.exit_code(raised.value) == ExitCode.FAILED


def test_too_long_and_undecodable_names_are_reported_on_one_line(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="too long") as raised:
        (tmp_path / ("é" * 200)).write_text("")
    assert "the name is too long" in refused(raised.value)
    with pytest.raises(OSError, match="No such file") as missing:
        Path(tmp_path, os.fsdecode(b"new\nline\xff")).stat()
    assert refused(missing.value).splitlines() == [refused(missing.value)]
    assert filesystem.exit_code(missing.value) == ExitCode.BAD_INPUT


def test_quota_has_its_own_message() -> None:
    assert "quota is used up" in refused(OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), "/home/x"))


@pytest.mark.parametrize(
    "bug",
    [OSError("no errno"), PermissionError(errno.EPERM, "of os.kill"), ConnectionRefusedError(errno.ECONNREFUSED, "")],
)
def test_error_that_is_not_of_a_file_system_is_not_explained(bug: OSError) -> None:
    assert filesystem.explain(bug) is None


def test_path_of_another_user_is_reported_with_owner_and_advice() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to give a folder to another user")
    with public_folder() as above:
        theirs = above / "theirs"
        theirs.mkdir(mode=0o755)
        os.chown(theirs, 1, 1)
        words = f"{theirs} is not writable: it belongs to daemon, and you (nobody) have no permission; ask them"
        text = as_nobody(lambda: filesystem.check_writable(theirs / "run", otherwise="ask them"))
        assert text == f"StorageError: {words}"
