"""Manages the signals of a process, its death with its parent, and its descendants."""

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

import psutil

from distrain.system.exits import end_process
from distrain.system.signals import STOP_SIGNALS, is_handled
from distrain.system.terminal import SHOW_CURSOR, write_last_words

STATE_TEXTS = {
    psutil.STATUS_STOPPED: "its process is stopped",
    psutil.STATUS_DISK_SLEEP: "its process waits for a disk",
    psutil.STATUS_ZOMBIE: "its process is dead",
}
_PR_SET_PDEATHSIG = 1
KILLED_BY_AGENT = 128 + signal.SIGTERM
_AGENTS = (b"distrain.worker", b"distrain.fork_server")
_KILL_TIMEOUT_S = 10.0  # how long to wait for a killed process, which may be stuck in the kernel


@contextmanager
def pause_together() -> Iterator[None]:
    """Make Ctrl-Z also stop the descendants of this process, and SIGCONT continue them.

    They have separate sessions, so the terminal's signals do not reach them.
    """
    if threading.current_thread() is not threading.main_thread() or not is_handled(signal.SIGTSTP):
        yield
        return

    def pause(number: int, _: FrameType | None) -> None:
        pids = descendants(os.getpid())
        signal_all(pids, signal.SIGSTOP)
        if sys.stdout.isatty():
            write_last_words(SHOW_CURSOR)  # a live line has hidden it
        signal.signal(number, signal.SIG_DFL)
        signal.pthread_kill(threading.get_ident(), number)  # returns once this process is continued
        signal.signal(number, pause)
        signal_all(pids, signal.SIGCONT)

    previous = signal.signal(signal.SIGTSTP, pause)
    try:
        yield
    finally:
        signal.signal(signal.SIGTSTP, previous)


def hold_signals() -> None:
    """Block the stop signals in this process and its future children; they stay pending until they are fetched.

    A blocked signal interrupts nothing: torchrun's agent, which would end its ranks 30 s after a signal, never sees it.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)


def release_signals() -> None:
    """Unblock the stop signals."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def die_with_parent(parent: int | None = None) -> None:
    """Make the kernel kill this process when its parent dies, so that a killed launcher leaves no orphan.

    Pass the parent's process id where it is known: it may have died before this call.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent is not None and os.getppid() != parent:
        end_process(1)


def is_orphan() -> bool:
    """Return whether torchrun started this process and has ended since, so that the process has another parent.

    The command line of torchrun's agent, or of distrain's fork server, contains the module that it starts.
    """
    if sys.platform != "linux" or "TORCHELASTIC_RUN_ID" not in os.environ:
        return False
    try:
        command = Path(f"/proc/{os.getppid()}/cmdline").read_bytes()
    except OSError:
        return True
    return not any(module in command for module in _AGENTS)


def kill_below(root: int) -> set[int]:
    """Kill all descendants of `root`, wait until they are gone, and return their process ids."""
    killed: set[int] = set()
    deadline = time.monotonic() + _KILL_TIMEOUT_S
    while time.monotonic() < deadline:
        killed.update(descendants(root))
        alive = [pid for pid in killed if not is_gone(pid)]
        if not alive:
            break
        signal_all(alive, signal.SIGKILL)
        time.sleep(0.01)
    return killed


def children() -> list[int]:
    """Return the child processes of this one that have not been reaped.

    A signal handler calls this: it reads only the entries of this process, where psutil reads those of all processes.
    """
    found: list[int] = []
    for path in Path("/proc/self/task").glob("*/children"):
        with suppress(OSError):  # the thread has ended meanwhile
            found += map(int, path.read_text(encoding="utf-8").split())
    return found


def descendants(root: int) -> list[int]:
    """Return the processes started by `root`, directly or indirectly, the nearest first.

    Not by `Process.children(recursive=True)`, which fails where another user's process cannot be read (hidepid=1), and
    misses the descendants of a process that ends meanwhile.
    """
    children: dict[int | None, list[int]] = {}
    psutil.process_iter.cache_clear()  # with its cache it skips a process whose id was used before
    for process in psutil.process_iter(["ppid"]):
        children.setdefault(process.info["ppid"], []).append(process.pid)
    found, todo = [], [root]
    while todo:
        pids = children.get(todo.pop(0), [])
        found += pids
        todo += pids
    return found


def state_of(pid: int) -> str | None:
    """Return psutil's state of a process, such as `psutil.STATUS_STOPPED`; None where it does not exist."""
    try:
        return str(psutil.Process(pid).status())
    except psutil.Error:
        return None


def signal_main_thread(pid: int, number: int) -> None:
    """Send a signal to the main thread of a process; raises `OSError` where it is gone or another user's.

    With a C library without tgkill(2) (glibc before 2.30), the kernel chooses the thread, and prefers the main thread
    while the process runs.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "tgkill"):
        os.kill(pid, number)
    elif libc.tgkill(pid, pid, number) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def catches(pid: int, number: int) -> bool:
    """Return whether a process has a handler for a signal; without one, many signals would kill it."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    mask = next((line.split()[1] for line in lines if line.startswith("SigCgt:")), "0")
    return bool(int(mask, 16) >> (number - 1) & 1)


def is_gone(pid: int) -> bool:
    """Whether a process has ended with all of its threads.

    After the main thread has ended, other threads may still run, or be held by a driver: until they end, the process
    holds its files and the memory of its GPU.
    """
    try:
        process = psutil.Process(pid)
        return bool(process.status() == psutil.STATUS_ZOMBIE and process.num_threads() <= 1)
    except psutil.Error:
        return True


def signal_all(pids: list[int], number: signal.Signals) -> None:
    """Send a signal to each of the processes that still exist and belong to this user."""
    for pid in pids:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)
