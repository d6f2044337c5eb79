"""Manages a process's ties to others: the signals it hears, the parent it dies with, and the processes below it."""

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
from distrain.system.signals import STOP_SIGNALS, is_heard
from distrain.system.terminal import SHOW_CURSOR, write_last_words

IN_WORDS = {
    psutil.STATUS_STOPPED: "its process is stopped",
    psutil.STATUS_DISK_SLEEP: "its process waits for a disk",
    psutil.STATUS_ZOMBIE: "its process is dead",
}
_PR_SET_PDEATHSIG = 1
KILLED_BY_AGENT = 128 + signal.SIGTERM
_AGENTS = (b"distrain.worker", b"distrain.fork_server")
_LAST_BREATH_S = 10.0  # a killed process that the kernel still holds after this is left to it


@contextmanager
def pause_together() -> Iterator[None]:
    """Have Ctrl-Z stop the processes below this one as well, and SIGCONT continue them.

    They have sessions of their own, which the terminal does not reach.
    """
    if threading.current_thread() is not threading.main_thread() or not is_heard(signal.SIGTSTP):
        yield
        return

    def pause(number: int, _: FrameType | None) -> None:
        below = descendants(os.getpid())
        signal_all(below, signal.SIGSTOP)
        if sys.stdout.isatty():
            write_last_words(SHOW_CURSOR)  # a live line has hidden it
        signal.signal(number, signal.SIG_DFL)
        signal.pthread_kill(threading.get_ident(), number)  # returns once this process is continued
        signal.signal(number, pause)
        signal_all(below, signal.SIGCONT)

    previous = signal.signal(signal.SIGTSTP, pause)
    try:
        yield
    finally:
        signal.signal(signal.SIGTSTP, previous)


def hold_signals() -> None:
    """Keep the stop signals pending in this process and in what it starts, until someone fetches them.

    A held signal interrupts nothing: torchrun's agent, which would end its ranks 30 s after a signal, never sees it.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)


def release_signals() -> None:
    """Let the stop signals through again."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def die_with_parent(parent: int | None = None) -> None:
    """Have the kernel kill this process when its parent dies, so that a killed launcher leaves no orphan.

    Give the parent's process id where it is known: it may have died before this call.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent is not None and os.getppid() != parent:
        end_process(1)


def is_orphan() -> bool:
    """Return whether torchrun has started this process and is gone: the kernel has given it another parent since.

    torchrun's agent, or distrain's with it inside, names the module that it starts on its own command line.
    """
    if sys.platform != "linux" or "TORCHELASTIC_RUN_ID" not in os.environ:
        return False
    try:
        command = Path(f"/proc/{os.getppid()}/cmdline").read_bytes()
    except OSError:
        return True
    return not any(module in command for module in _AGENTS)


def kill_below(root: int) -> set[int]:
    """Kill everything that `root` has started, wait until it is gone, and return what it was."""
    victims: set[int] = set()
    deadline = time.monotonic() + _LAST_BREATH_S
    while time.monotonic() < deadline:
        victims.update(descendants(root))
        alive = [pid for pid in victims if not is_gone(pid)]
        if not alive:
            break
        signal_all(alive, signal.SIGKILL)
        time.sleep(0.01)
    return victims


def children() -> list[int]:
    """Return the processes that this one has started and not waited for.

    A signal handler calls it: it reads this process's own entries, where psutil reads those of the whole machine.
    """
    found: list[int] = []
    for path in Path("/proc/self/task").glob("*/children"):
        with suppress(OSError):  # the thread has ended since
            found += map(int, path.read_text(encoding="utf-8").split())
    return found


def descendants(root: int) -> list[int]:
    """Return the processes that `root` has started, and those that these have started, the nearest first.

    Not by `Process.children(recursive=True)`: it fails where another user's process may not be read (hidepid=1), and
    misses what is below a process that ends meanwhile.
    """
    children: dict[int | None, list[int]] = {}
    psutil.process_iter.cache_clear()  # it passes over a process that has the id of one that has ended
    for process in psutil.process_iter(["ppid"]):
        children.setdefault(process.info["ppid"], []).append(process.pid)
    found, todo = [], [root]
    while todo:
        below = children.get(todo.pop(0), [])
        found += below
        todo += below
    return found


def state_of(pid: int) -> str | None:
    """Return one of psutil's states of a process, such as `psutil.STATUS_STOPPED`; None where there is none."""
    try:
        return str(psutil.Process(pid).status())
    except psutil.Error:
        return None


def signal_main_thread(pid: int, number: int) -> None:
    """Send a signal to the main thread of a process; raises `OSError` where there is none, or it is another user's.

    A C library without tgkill(2) (glibc before 2.30) leaves the choice of the thread to the kernel, which prefers the
    main thread while the process runs.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "tgkill"):
        os.kill(pid, number)
    elif libc.tgkill(pid, pid, number) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def catches(pid: int, number: int) -> bool:
    """Return whether a process has a handler for a signal, which would kill many a process that has none."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    mask = next((line.split()[1] for line in lines if line.startswith("SigCgt:")), "0")
    return bool(int(mask, 16) >> (number - 1) & 1)


def is_gone(pid: int) -> bool:
    """Whether a process has ended, with all of its threads.

    A process whose main thread is dead may have others that still run, or that a driver has not let go of yet: until
    then it holds its files and the memory of its GPU.
    """
    try:
        process = psutil.Process(pid)
        return bool(process.status() == psutil.STATUS_ZOMBIE and process.num_threads() <= 1)
    except psutil.Error:
        return True


def signal_all(pids: list[int], number: signal.Signals) -> None:
    """Send a signal to each of the processes that are still there and are this user's."""
    for pid in pids:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)
