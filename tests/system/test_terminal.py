"""What happens to output whose reader has gone, or that cannot be written."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from distrain.runs.directory import RunDirectory
from tests.cli_runner import command, wait_until
from tests.forks import server
from tests.terminals import terminal

GUARDED = """
import os, subprocess, sys, time
from pathlib import Path
from distrain.system.terminal import guard_output, logged_already, tolerating_loss
guard_output()
"""
HARMED = """
with tolerating_loss(Path("log")):
    print("ready", flush=True)
    while not Path("go").exists():
        time.sleep(0.01)
    time.sleep(0.2)
    child = subprocess.run(["echo", "from a child"])
    assert child.returncode == 0, child
    os.write(1, b"past Python\\n")
    print("from the user", flush=True)
    print("to standard error", file=sys.stderr)
    with logged_already():
        print("logged by other means", flush=True)
print("left in the buffer", end="")
"""


def start(code: str, folder: Path, **options: object) -> "subprocess.Popen[str]":
    options = {"stderr": subprocess.PIPE, "stdout": subprocess.PIPE, **options}
    return subprocess.Popen([sys.executable, "-c", GUARDED + code], cwd=folder, text=True, **options)  # type: ignore[call-overload,no-any-return]


def test_lost_reader_ends_neither_the_process_nor_its_children(tmp_path: Path) -> None:
    process = start(HARMED, tmp_path)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.stdout.close()
    (tmp_path / "go").touch()
    assert process.stderr is not None
    assert process.stderr.read() == "to standard error\n"
    assert process.wait() == 0
    assert (tmp_path / "log").read_text() == "from a child\npast Python\nfrom the user\n"


def test_closed_terminal_ends_neither_the_process_nor_its_children(tmp_path: Path) -> None:
    with terminal() as screen:
        argv = [sys.executable, "-c", GUARDED + HARMED]
        process = screen.start(argv, cwd=tmp_path, prepare=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
        screen.wait_for("ready")
        screen.close()
        (tmp_path / "go").touch()
        assert process.wait(20) == 0
    log = (tmp_path / "log").read_text()
    assert log == "from a child\npast Python\nfrom the user\nto standard error\n"


def test_output_on_a_full_disk_loses_no_line(tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        code = 'with tolerating_loss(Path("log")):\n    print("one", flush=True)\n    print("two")'
        process = start(code, tmp_path, stdout=full, stderr=full)
    assert process.wait() == 0
    assert (tmp_path / "log").read_text() == "one\ntwo\n"


def test_terminal_made_non_blocking_by_others_loses_nothing(tmp_path: Path) -> None:
    code = """
os.set_blocking(1, False)
for number in range(3000):
    print(f"{number:099}")
"""
    process = start(code, tmp_path)
    time.sleep(0.5)  # the pipe is full by then
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert [int(line) for line in out.splitlines()] == list(range(3000))


def test_terminal_paused_with_ctrl_s_blocks_nothing(tmp_path: Path) -> None:
    code = """
from distrain.system import terminal
terminal.PATIENCE_S = 0.2
with tolerating_loss(Path("log")):
    print("ready", flush=True)
    for number in range(20):
        time.sleep(0.05)
        print(f"line {number}", flush=True)
    Path("done").touch()
    while not Path("go").exists():
        time.sleep(0.01)
    print("the end", flush=True)
"""
    with terminal() as screen:
        process = screen.start([sys.executable, "-c", GUARDED + code], cwd=tmp_path)
        screen.wait_for("ready")
        screen.press("\x13")
        wait_until((tmp_path / "done").exists, "the last line")
        screen.press("\x11")
        (tmp_path / "go").touch()
        assert process.wait(20) == 0
        screen.wait_for("the end")
    log = (tmp_path / "log").read_text().splitlines()
    assert log == [f"line {number}" for number in range(20 - len(log), 20)]
    assert len(log) > 10
    assert len(log) == 20 or f"line {19 - len(log)}\r\n" in screen.shown


def test_descriptors_of_closed_streams_are_not_reused_for_files(tmp_path: Path) -> None:
    def close() -> None:
        for descriptor in range(3):
            os.close(descriptor)

    code = """
number = os.open("file", os.O_WRONLY | os.O_CREAT)
print("words")
print("words", file=sys.stderr)
sys.stdin.read()
subprocess.run(["echo", "from a child"], check=True)
os._exit(number)
"""
    process = subprocess.Popen([sys.executable, "-c", GUARDED + code], cwd=tmp_path, preexec_fn=close)
    assert process.wait() > 2
    assert (tmp_path / "file").read_bytes() == b""


def test_ctrl_c_ends_a_command_that_waits_with_one_line_and_exit_code_130(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.create()
    run.recipe.touch()
    with run.hold_launcher_lock():  # as if something trained in it
        argv = command("logs", "run", "--follow")
        process = subprocess.Popen(argv, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        run.log(0).write_text("a line\n")
        assert process.stdout is not None
        assert process.stdout.readline() == "a line\n"
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=20)
    assert (process.returncode, out) == (130, "distrain: interrupted\n")


def ended(arguments: tuple[str, ...], prepare: Callable[[], None], folder: Path) -> tuple[int | None, str]:
    """Return the exit code of a command, and its standard error."""
    process = server().Process(target=_run, args=(arguments, prepare, folder / "err"))
    process.start()
    process.join(60)
    assert not process.is_alive()
    return process.exitcode, (folder / "err").read_text()


def _run(arguments: tuple[str, ...], prepare: Callable[[], None], errors: Path) -> None:
    from distrain.cli import main

    os.chdir(errors.parent)
    os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115 - the process's own
    prepare()
    sys.argv = ["distrain", *arguments]
    main()


def full_disk() -> None:
    os.dup2(os.open("/dev/full", os.O_WRONLY), 1)


def lost_reader() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    os.dup2(writer, 1)


@pytest.mark.parametrize("arguments", [("recipes", "keys", "--json"), ("runs",), ("fit", "--help"), ("--version",)])
def test_unwritable_result_is_a_failure_and_an_unread_one_is_not(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    assert ended(arguments, lost_reader, tmp_path) == (0, "")
    code, words = ended(arguments, full_disk, tmp_path)
    assert (code, words) == (1, "distrain: the output cannot be written: No space left on device\n")
