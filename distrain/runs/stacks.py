"""Reads the Python stacks of a run's ranks on demand, and answers such requests inside a rank.

For ranks on this node, a signal makes faulthandler write the stack of the main thread to a file of the run
directory. It does so in C and in that thread, so it works while the thread hangs in native code, and no frame changes
meanwhile. Ranks on other nodes, and requests for all threads, are answered by the heartbeat's thread when it finds
`stacks-request`: faulthandler writes while that thread holds the GIL, so no other thread runs Python code.
"""

import faulthandler
import os
import re
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from distrain.runs.directory import RunDirectory
from distrain.runs.status import Heartbeat
from distrain.system.files import NotRegularError, read_regular
from distrain.system.process import catches, signal_main_thread, state_of

STACK_SIGNAL = signal.SIGUSR2
SILENT_AFTER_S = 5.0  # a rank writes its heartbeat once a second, sometimes later on a busy machine or a slow disk
ANSWER_TIMEOUT_S = 4.0  # how long ranks have to answer a request
MAIN_THREAD = "MainThread"
_POLL_S = 0.05
_SETTLED_S = 0.1  # a dump that has not grown for this long is complete
_HEADER = re.compile(r"^(?:(Current thread|Thread) (0x[0-9a-f]+)|Stack)\b.*\(most recent call first\):$")
_FRAME = re.compile(r'^  File "(.*)", line (\d+) in (.*)$')
_FATAL = "Fatal Python error: "
_WORKER = str(Path(__file__).parents[1] / "worker.py")


@dataclass(frozen=True)
class RankStack:
    """What is known about a rank; `heartbeat` and `age_s` are None for a rank that has not written a heartbeat yet."""

    rank: int
    heartbeat: Heartbeat | None
    age_s: float | None  # since the heartbeat, by this node's clock
    process_state: str | None  # psutil's status, for a process of this node
    threads: dict[str, str] = field(default_factory=dict)  # stacks by thread name, empty without an answer

    @property
    def is_silent(self) -> bool:
        """Whether the heartbeat is older than it should be."""
        return self.age_s is None or self.age_s > SILENT_AFTER_S

    @property
    def main(self) -> str:
        """The stack of the main thread, without the frames above the worker; empty without an answer."""
        return self.threads.get(MAIN_THREAD, "")


def read_stacks(run: RunDirectory, *, world_size: int, all_threads: bool = False) -> list[RankStack]:
    """Request the stack of every rank, and return the answers within `ANSWER_TIMEOUT_S`, by rank."""
    requested = time.monotonic()
    heartbeats = {heartbeat.rank: heartbeat for heartbeat in run.read_heartbeats()}
    answers = request_stacks(run, heartbeats.values(), all_threads=all_threads)
    moved = {beat.rank for beat in run.read_heartbeats() if beat.rank in heartbeats and beat != heartbeats[beat.rank]}
    seen_s = dict.fromkeys(moved | answers.keys(), time.monotonic() - requested)
    return [
        _rank_stack(rank, heartbeats.get(rank), answers.get(rank, {}), seen_s.get(rank)) for rank in range(world_size)
    ]


def request_stacks(
    run: RunDirectory, heartbeats: Iterable[Heartbeat], *, all_threads: bool = False, wake: bool = False
) -> dict[int, dict[str, str]]:
    """Return the stacks of these ranks by rank and thread, without ranks that do not answer in `ANSWER_TIMEOUT_S`.

    With `wake`, stopped processes (SIGSTOP) are continued first: otherwise they cannot answer.
    """
    ranks = {heartbeat.rank: heartbeat for heartbeat in heartbeats}
    earlier = {heartbeat.rank: heartbeat.time for heartbeat in run.read_heartbeats()}
    dumps = {rank: dump for rank, beat in ranks.items() if (dump := _Dump.request(run, beat, wake=wake)) is not None}
    needs_file = all_threads or ranks.keys() != dumps.keys()
    found: dict[int, dict[str, str]] = {}
    deadline = time.monotonic() + ANSWER_TIMEOUT_S
    with _requested(run) if needs_file else nullcontext():
        while time.monotonic() < deadline:
            if needs_file:
                new = [beat for beat in run.read_heartbeats() if beat.time != earlier.get(beat.rank)]
                found |= {beat.rank: beat.threads for beat in new if beat.rank in ranks and beat.threads}
            is_answered = ranks.keys() <= found.keys() if all_threads else ranks.keys() <= found.keys() | dumps.keys()
            if is_answered and all(dump.is_complete for dump in dumps.values()):
                break
            time.sleep(_POLL_S)
    main = {rank: {MAIN_THREAD: text} for rank, dump in dumps.items() if (text := dump.main)}
    return main | found


def answer_requests(run: RunDirectory, rank: int, *, owns_process: bool) -> None:
    """Make this process write its main thread's stack to the run directory on each `STACK_SIGNAL`.

    The stack of a fatal error (such as a segmentation fault) is written there as well, or to standard error where the
    process is not a worker. To be called from the main thread. Raises `OSError` where the file cannot be created.
    """
    path = run.stack(rank)
    path.parent.mkdir(exist_ok=True)
    file = path.open("wb")  # faulthandler keeps it open; the stacks of an earlier attempt are deleted
    faulthandler.register(STACK_SIGNAL, file=file, all_threads=False)
    if owns_process:
        faulthandler.enable(file=file)
    elif sys.__stderr__ is not None:
        faulthandler.enable(file=sys.__stderr__)


def read_own_threads() -> dict[str, str]:
    """Return the stacks of all threads of this process by name.

    faulthandler writes them in one call, during which no other thread runs Python code.
    """
    names = {f"0x{thread.ident:016x}": thread.name for thread in threading.enumerate() if thread.ident is not None}
    names[f"0x{threading.main_thread().ident:016x}"] = MAIN_THREAD
    descriptor = os.memfd_create("stacks")
    with os.fdopen(descriptor, "w+b") as file:
        faulthandler.dump_traceback(file=file, all_threads=True)
        file.seek(0)
        text = file.read().decode(errors="replace")
    return {
        name if ident == "" or name == MAIN_THREAD else f"{name} ({int(ident, 16)})": stack
        for ident, stack in parse_dump(text)
        for name in [names.get(ident, "a thread not started by Python")]
    }


def read_fatal_error(run: RunDirectory, rank: int) -> str | None:
    """Return the error and stack that faulthandler wrote when a fatal error killed the rank; None if it wrote none."""
    try:
        _, found, text = read_regular(run.stack(rank), errors="replace").rpartition(_FATAL)
    except (OSError, NotRegularError):
        return None
    stacks = [stack for _, stack in parse_dump(text)]
    return f"{text.splitlines()[0]}\n{stacks[0] if stacks else ''}" if found else None


def parse_dump(text: str) -> Iterator[tuple[str, str]]:
    """Yield thread id and stack from a dump of faulthandler, the current thread first.

    The thread id is hexadecimal, and empty in a dump of a single thread. The stack has the form of a traceback: the
    innermost call last, with source lines, and without the frames that called the worker.
    """
    found: list[tuple[bool, str, list[str]]] = []
    for line in text.splitlines():
        if header := _HEADER.match(line):
            found.append((header[1] == "Thread", header[2] or "", []))
        elif found and line.startswith("  "):
            found[-1][2].append(line)
    for _, ident, lines in sorted(found, key=lambda dump: dump[0]):
        yield ident, _format(lines)


def _format(lines: list[str]) -> str:
    frames = [traceback.FrameSummary(m[1], int(m[2]), m[3]) for line in lines if (m := _FRAME.match(line))]
    frames.reverse()
    start = next((place for place, frame in enumerate(frames) if frame.filename == _WORKER), 0)
    return "".join(traceback.StackSummary.from_list(frames[start:]).format())


class _Dump:
    """A stack that was requested from a process of this node by the signal."""

    def __init__(self, path: Path, start: int) -> None:
        self._path = path
        self._start = start  # size of the file before the request
        self._size = start
        self._grown_s = time.monotonic()

    @classmethod
    def request(cls, run: RunDirectory, heartbeat: Heartbeat, *, wake: bool) -> "_Dump | None":
        """Send the signal; None where the process is not on this node, cannot answer, or is another user's."""
        if heartbeat.host != socket.gethostname() or not catches(heartbeat.pid, STACK_SIGNAL):
            return None
        path = run.stack(heartbeat.rank)
        try:
            if wake:
                os.kill(heartbeat.pid, signal.SIGCONT)
            elif state_of(heartbeat.pid) == psutil.STATUS_STOPPED:
                return None
            dump = cls(path, path.stat().st_size)
            signal_main_thread(heartbeat.pid, STACK_SIGNAL)
        except OSError:
            return None
        return dump

    @property
    def is_complete(self) -> bool:
        """Whether there is an answer that has stopped growing."""
        size = self._path.stat().st_size
        if size != self._size:
            self._size, self._grown_s = size, time.monotonic()
        return size > self._start and time.monotonic() - self._grown_s >= _SETTLED_S

    @property
    def main(self) -> str:
        """The newest stack in the answer; empty without an answer."""
        with self._path.open("rb") as file:
            file.seek(self._start)
            stacks = [stack for _, stack in parse_dump(file.read().decode(errors="replace"))]
        return stacks[-1] if stacks else ""


@contextmanager
def _requested(run: RunDirectory) -> Iterator[None]:
    """Create `stacks-request` for the duration of the block, if the run directory can be written."""
    with suppress(OSError):
        run.stacks_request.touch()
    try:
        yield
    finally:
        with suppress(OSError):
            run.stacks_request.unlink(missing_ok=True)


def _rank_stack(rank: int, heartbeat: Heartbeat | None, threads: dict[str, str], seen_s: float | None) -> RankStack:
    """Return what is known about a rank; it answered or wrote a heartbeat within `seen_s`, or not at all if None.

    The clock of another node may be off by minutes, so the age of a rank there is at most `seen_s`.
    """
    if heartbeat is None:
        return RankStack(rank, None, None, None)
    is_here = heartbeat.host == socket.gethostname()
    age_s = max(0.0, time.time() - heartbeat.time)
    if not is_here and seen_s is not None:
        age_s = min(age_s, seen_s)
    return RankStack(rank, heartbeat, age_s, state_of(heartbeat.pid) if is_here else None, threads)
