"""A device is leased to one run at a time, across processes and users, until the last process of the run has ended."""

import errno
import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from distrain.errors import LaunchError, StorageError
from distrain.system.leases import Holder, LeaseFolder, open_leases, user_name
from distrain.system.locks import boot_id
from distrain.system.shared_locks import LeasesUnavailableError, LockFileError
from tests.cli_runner import wait_until
from tests.refusing import without_locks
from tests.users import NOBODY, as_nobody, public_folder, under_nobody

LAUNCHER = """
import sys
from pathlib import Path
from distrain.system.leases import LeaseFolder
lease = LeaseFolder(Path(sys.argv[1])).acquire("cpu-0", Path(sys.argv[2]))
print("refused" if lease is None else "leased", flush=True)
sys.stdin.read()
"""
RANK = """
import sys
from distrain.system.leases import share_leases
share_leases()
print("shared", flush=True)
sys.stdin.read()
"""
LOOKER = """
import sys, time
from pathlib import Path
from distrain.system.leases import LeaseFolder
folder, found = LeaseFolder(Path(sys.argv[1])), set()
print("looking", flush=True)
for _ in range(200):
    found.add(str(folder.find_holder("cpu-0")))
    time.sleep(0.002)
print(*sorted(found), flush=True)
"""
CONTENDER = """
import sys
from pathlib import Path
from distrain.system.leases import LeaseFolder
folder, marks, done = LeaseFolder(Path(sys.argv[1])), Path(sys.argv[2]), 0
while done < 25:
    with folder.choosing():
        found = [folder.acquire(f"cpu-{number}", marks) for number in range(3)]
        leases = [lease for lease in found if lease is not None]
        for lease in leases[2:]:
            lease.release()
    held = leases[:2]
    if len(held) == 2:
        for lease in held:
            (marks / lease.device).mkdir()  # fails where another process has the device
        for lease in held:
            (marks / lease.device).rmdir()
        done += 1
    for lease in held:
        lease.release()
"""

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def folder() -> Iterator[LeaseFolder]:
    with public_folder() as above:
        path = above / "leases"
        path.mkdir()
        path.chmod(0o1777)
        yield LeaseFolder(path)


@pytest.fixture
def start(folder: LeaseFolder) -> Iterator[Start]:
    """Starts programs that are killed when the test is over, and returns once they have printed a line."""
    begun: list[subprocess.Popen[str]] = []

    def begin(program: str, *words: str, under: list[str] | None = None, says: str) -> "subprocess.Popen[str]":
        begun.append(
            subprocess.Popen(
                [*(under or []), sys.executable, "-c", program, *words],
                env={**os.environ, "DISTRAIN_LOCK_DIR": str(folder.path), "DISTRAIN_LEASED": "cpu-0"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        assert line(begun[-1]) == says
        return begun[-1]

    yield begin
    for process in begun:
        end(process)


def line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def end(process: "subprocess.Popen[str]") -> None:
    process.kill()
    process.wait()


def is_free(folder: LeaseFolder, device: str = "cpu-0") -> bool:
    """Whether the device can be leased, and is shown as it is."""
    lease = folder.acquire(device, Path("/runs/probe"))
    if lease is not None:
        lease.release()
    assert (folder.find_holder(device) is None) == (lease is not None)
    return lease is not None


def test_device_is_leased_to_one_run_which_is_shown(folder: LeaseFolder, start: Start) -> None:
    launcher = start(LAUNCHER, str(folder.path), "/runs/first", says="leased")
    start(LAUNCHER, str(folder.path), "/runs/second", says="refused")
    holder = folder.find_holder("cpu-0")
    assert holder is not None
    assert (holder.run, holder.pid, holder.host) == ("/runs/first", launcher.pid, socket.gethostname())
    assert holder.boot == boot_id()
    assert str(holder).startswith(f"run first of {user_name(os.getuid())} since ")
    assert is_free(folder, "cpu-1")
    launcher.communicate("")
    assert is_free(folder)


def test_killed_launcher_frees_its_device(folder: LeaseFolder, start: Start) -> None:
    launcher = start(LAUNCHER, str(folder.path), "/runs/first", says="leased")
    assert not is_free(folder)
    end(launcher)
    assert is_free(folder)


def test_ranks_of_a_killed_launcher_keep_its_device_until_the_last_has_ended(folder: LeaseFolder, start: Start) -> None:
    launcher = start(LAUNCHER, str(folder.path), "/runs/first", says="leased")
    ranks = [start(RANK, says="shared") for _ in range(2)]
    end(launcher)
    for rank in ranks:
        assert not is_free(folder)
        start(LAUNCHER, str(folder.path), "/runs/second", says="refused")
        holder = folder.find_holder("cpu-0")
        assert holder is not None
        assert holder.run == "/runs/first"
        end(rank)
    assert is_free(folder)


def test_forks_and_programs_of_a_launcher_do_not_keep_its_device(folder: LeaseFolder) -> None:
    lease = folder.acquire("cpu-0", Path("/runs/first"))
    assert lease is not None
    program = subprocess.Popen(["sleep", "60"], close_fds=False)
    if (pid := os.fork()) == 0:
        signal.pause()
        os._exit(0)
    try:
        assert folder.acquire("cpu-0", Path("/runs/second")) is None
        lease.release()
        assert is_free(folder)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        program.kill()
        program.wait()


def test_fork_that_gives_back_a_lease_of_its_parent_changes_nothing(folder: LeaseFolder, tmp_path: Path) -> None:
    lease = folder.acquire("cpu-0", Path("/runs/first"))
    assert lease is not None
    if (pid := os.fork()) == 0:
        file = os.open(tmp_path / "own", os.O_WRONLY | os.O_CREAT)  # gets the number of the file that was closed
        os.write(file, b"content")
        lease.release()
        os._exit(0)
    os.waitpid(pid, 0)
    assert (tmp_path / "own").read_text() == "content"
    holder = folder.find_holder("cpu-0")
    assert holder is not None
    assert holder.run == "/runs/first"
    lease.release()


def test_those_that_look_see_no_holder_of_a_free_device_and_keep_no_run_from_it(
    folder: LeaseFolder, start: Start
) -> None:
    end(start(RANK, says="shared"))
    lookers = [start(LOOKER, str(folder.path), says="looking") for _ in range(2)]
    assert {line(looker) for looker in lookers} == {"None"}
    lookers = [start(LOOKER, str(folder.path), says="looking") for _ in range(2)]
    while any(looker.poll() is None for looker in lookers):
        lease = folder.acquire("cpu-0", Path("/runs/first"))
        assert lease is not None
        lease.release()


def test_contenders_never_share_a_device_and_all_make_progress(folder: LeaseFolder, tmp_path: Path) -> None:
    words = [sys.executable, "-c", CONTENDER, str(folder.path), str(tmp_path)]
    contenders = [subprocess.Popen(words) for _ in range(4)]
    assert [contender.wait(120) for contender in contenders] == [0] * 4
    assert all(is_free(folder, f"cpu-{number}") for number in range(3))


def test_choice_that_another_process_blocks_is_made_all_the_same(
    folder: LeaseFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distrain.system.leases._CHOICE_S", 0.05)
    with folder.choosing(), folder.choosing():
        assert is_free(folder)
    (folder.path / "choice.lock").unlink()
    (folder.path / "choice.lock").symlink_to("/etc/passwd")
    with folder.choosing():
        assert is_free(folder)


@pytest.mark.parametrize("name", ["cpu-0.lock", "cpu-0.ranks"])
@pytest.mark.parametrize("kind", ["link", "dangling link", "hard link", "fifo", "folder"])
def test_file_that_is_not_a_regular_one_is_not_locked(folder: LeaseFolder, start: Start, name: str, kind: str) -> None:
    target, path = folder.path.parent / "target", folder.path / name
    target.write_text("content")
    make: dict[str, Callable[[], object]] = {
        "link": lambda: path.symlink_to(target),
        "dangling link": lambda: path.symlink_to(folder.path.parent / "nowhere"),
        "hard link": lambda: path.hardlink_to(target),
        "fifo": lambda: os.mkfifo(path),
        "folder": path.mkdir,
    }
    make[kind]()
    with pytest.raises(LockFileError, match=f"{name} (is not a regular file|cannot be opened)"):
        folder.acquire("cpu-0", Path("/runs/first"))
    with pytest.raises(LockFileError):
        folder.find_holder("cpu-0")
    end(start(RANK, says="shared"))
    assert target.read_text() == "content"
    assert not (folder.path.parent / "nowhere").exists()
    (path.rmdir if kind == "folder" else path.unlink)()
    assert is_free(folder)


def test_file_that_its_owner_closes_to_others_is_not_locked(folder: LeaseFolder) -> None:
    (folder.path / "cpu-0.lock").touch(mode=0o600)
    text = as_nobody(lambda: folder.acquire("cpu-0", Path("/runs/first")))
    assert text == f"LockFileError: {folder.path / 'cpu-0.lock'} cannot be opened (Permission denied)"


def test_file_that_others_cannot_write_is_locked_without_a_record(folder: LeaseFolder) -> None:
    path = folder.path / "cpu-0.lock"
    path.touch(mode=0o644)
    path.chmod(0o644)

    def lease_it() -> object:
        lease = folder.acquire("cpu-0", Path("/runs/first"))
        assert lease is not None
        return folder.find_holder("cpu-0")

    assert as_nobody(lease_it) == "another program"
    assert path.read_text() == ""
    assert is_free(folder)


def test_program_that_runs_under_flock_has_the_device(folder: LeaseFolder) -> None:
    path = folder.path / "cpu-0.lock"
    process = subprocess.Popen(["flock", str(path), "sleep", "60"])
    try:
        wait_until(lambda: folder.find_holder("cpu-0") is not None, "the lock")
        assert str(folder.find_holder("cpu-0")) == "another program"
        assert not is_free(folder)
    finally:
        end_group(process)
    wait_until(lambda: is_free(folder), "the end")


def end_group(process: "subprocess.Popen[bytes]") -> None:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for pid in [*map(int, children), process.pid]:
        os.kill(pid, signal.SIGKILL)
    process.wait()


@pytest.mark.parametrize(
    ("record", "shown"),
    [
        (b"", "another program"),
        (b"\xff\0", "another program"),
        (b"[" * 4000, "another program"),
        (b"[1]", "another program"),
        (b'{"run": ["x"], "boot": "BOOT"}', "another program"),
        (b'{"run": "/runs/old", "user": "ann", "boot": "of another boot"}', "another program"),
        (b'{"run": "/runs/a", "user": "ann", "since": 1e300, "boot": "BOOT"}', "run a of ann since an unknown time"),
        (b'{"run": "/runs/a", "user": "ann", "since": NaN, "boot": "BOOT"}', "run a of ann since an unknown time"),
        (b'{"run": "/runs/a\\u001b[2J", "since": Infinity, "boot": "BOOT"}', r"run a\x1b[2J of  since an unknown time"),
    ],
)
def test_record_is_shown_only_as_far_as_it_makes_sense(
    folder: LeaseFolder, start: Start, record: bytes, shown: str
) -> None:
    start(LAUNCHER, str(folder.path), "/runs/first", says="leased")
    (folder.path / "cpu-0.lock").write_bytes(record.replace(b"BOOT", boot_id().encode()))
    assert str(folder.find_holder("cpu-0")) == shown


def test_time_of_another_day_is_shown_with_the_day() -> None:
    assert str(Holder(run="/runs/a", user="ann", since=0.0)).startswith("run a of ann since 19")


def test_old_name_of_a_mig_device_is_a_file_name(folder: LeaseFolder) -> None:
    name = "MIG-GPU-11112222-3333-4444-5555-666677778888/1/0"
    lease = folder.acquire(name, Path("/runs/first"))
    assert lease is not None
    assert not is_free(folder, name)
    folder.drain(name, "")
    assert folder.find_drain(name) is not None
    assert folder.undrain(name)


def test_folder_and_files_are_shared_whatever_the_umask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTRAIN_LOCK_DIR", str(tmp_path / "leases"))
    before = os.umask(0o077)
    try:
        folder = open_leases()
        assert folder is not None
        assert is_free(folder)
        folder.share(["cpu-0"])
        folder.drain("cpu-0", "a reason")
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in [folder.path, *folder.path.iterdir()]}
    expected = {"leases": 0o1777, "cpu-0.drained": 0o644}
    assert modes == expected | dict.fromkeys(["choice.lock", "cpu-0.lock", "cpu-0.ranks"], 0o666)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("file", "is not a folder"),
        ("link", "is not a folder"),
        ("without parent", "cannot be created (No such file or directory)"),
        ("of another", "belongs to another user and is not shared"),
    ],
)
def test_folder_that_cannot_be_shared_names_the_way_out(
    folder: LeaseFolder, monkeypatch: pytest.MonkeyPatch, kind: str, words: str
) -> None:
    path = folder.path.parent / "mine"
    if kind == "file":
        path.touch()
    elif kind == "link":
        path.symlink_to(folder.path)
    elif kind == "of another":
        path.mkdir(mode=0o755)
    else:
        path = path / "below"
    monkeypatch.setenv("DISTRAIN_LOCK_DIR", str(path))
    advice = f"an administrator can share it by `install -d -m 1777 {path}`, or DISTRAIN_LOCK_DIR names another folder"
    sentence = f"LeasesUnavailableError: {path} {words}; {advice}"
    if kind == "of another":
        assert as_nobody(open_leases) == sentence
    else:
        with pytest.raises(LeasesUnavailableError) as caught:
            open_leases()
        assert f"LeasesUnavailableError: {caught.value}" == sentence


def test_file_system_without_locks_is_reported(folder: LeaseFolder) -> None:
    program = "from distrain.system.leases import open_leases\ntry:\n    open_leases()\nexcept Exception as error:\n"
    done = subprocess.run(
        [sys.executable, "-c", program + "    print(type(error).__name__, error)"],
        env={**os.environ, **without_locks(errno.ENOLCK), "DISTRAIN_LOCK_DIR": str(folder.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"LeasesUnavailableError {folder.path} has no file locks (No locks available)\n"


def test_leases_are_off_with_an_empty_name_and_refuse_a_relative_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTRAIN_LOCK_DIR", "")
    assert open_leases() is None
    monkeypatch.setenv("DISTRAIN_LOCK_DIR", "leases")
    with pytest.raises(LaunchError, match="DISTRAIN_LOCK_DIR=leases must be an absolute path"):
        open_leases()


def test_drained_device_says_by_whom_and_why_until_it_is_returned(folder: LeaseFolder) -> None:
    folder.drain("cpu-0", "fan\nfails")
    folder.drain("cpu-0", "another reason")
    drain = folder.find_drain("cpu-0")
    assert str(drain).startswith(f"drained by {user_name(os.getuid())} at ")
    assert str(drain).endswith(r": fan\nfails")
    assert folder.find_drain("cpu-1") is None
    assert folder.undrain("cpu-0")
    assert folder.find_drain("cpu-0") is None
    assert not folder.undrain("cpu-0")


def test_drain_follows_no_link_and_believes_no_record(folder: LeaseFolder) -> None:
    target = folder.path.parent / "target"
    target.write_text(json.dumps({"reason": "content"}))
    (folder.path / "cpu-0.drained").symlink_to(target)
    (folder.path / "cpu-1.drained").write_text(json.dumps({"reason": 1, "user": "ann"}))
    folder.drain("cpu-0", "a reason")
    for device in ("cpu-0", "cpu-1"):
        drain = folder.find_drain(device)
        assert drain is not None
        assert (drain.reason, drain.user) == ("", user_name(os.getuid()))
    assert folder.undrain("cpu-0")
    assert target.exists()


@pytest.mark.parametrize("owner", [0, NOBODY])
def test_device_is_returned_by_root_and_by_the_user_who_drained_it(folder: LeaseFolder, owner: int) -> None:
    folder.drain("cpu-0", "of root")
    os.chown(folder.path, owner, owner)  # who owns the folder could delete the file
    refused = as_nobody(lambda: folder.undrain("cpu-0"))
    assert refused.startswith(f"{StorageError.__name__}: cpu-0 was drained by root at ")
    assert refused.endswith(": of root; only that user and root can return it to service")
    as_nobody(lambda: folder.drain("cpu-1", "of nobody"))
    assert str(folder.find_drain("cpu-1")).startswith("drained by nobody at ")
    assert as_nobody(lambda: folder.undrain("cpu-1")) == "True"
    as_nobody(lambda: folder.drain("cpu-1", "of nobody"))
    assert folder.undrain("cpu-1")
    assert folder.find_drain("cpu-0") is not None


def test_two_users_share_the_devices_and_cannot_free_those_of_the_other(folder: LeaseFolder, start: Start) -> None:
    theirs = start(LAUNCHER, str(folder.path), "/runs/theirs", under=under_nobody(), says="leased")
    assert str(folder.find_holder("cpu-0")).startswith("run theirs of nobody since ")
    assert not is_free(folder)
    end(theirs)
    mine = folder.acquire("cpu-0", Path("/runs/mine"))  # by the file of the other user
    assert mine is not None
    assert as_nobody(lambda: folder.find_holder("cpu-0")).startswith("run mine of root since ")
    assert as_nobody(lambda: folder.acquire("cpu-0", Path("/runs/theirs"))) == "None"
    other = folder.acquire("cpu-1", Path("/runs/mine"))
    assert other is not None
    assert "PermissionError" in as_nobody((folder.path / "cpu-1.lock").unlink)
    mine.release()
    start(LAUNCHER, str(folder.path), "/runs/theirs", under=under_nobody(), says="leased")
