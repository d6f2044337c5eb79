"""Gets the Python stacks of a run's ranks on demand, and answers such a request inside a rank.

On the rank's own machine a signal makes faulthandler write the stack of the main thread to a file of the run directory,
in C and inside that very thread: this works while the thread hangs in native code, and reads no frame that may change.
Ranks of other machines, and requests for all threads, are answered by the heartbeat's thread once it finds
`stacks-request`: faulthandler writes while that thread holds the GIL, so that no other thread runs Python code.
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
from distrain.system.process import catches, signal_main_thread, state_of

STACK_SIGNAL = signal.SIGUSR2
SILENT_AFTER_S = 5.0  # a rank writes its heartbeat once a second, on a busy machine or a slow disk now and then later
ANSWER_S = 4.0  # how long ranks have to answer a request
MAIN_THREAD = "MainThread"
_POLL_S = 0.05
_SETTLED_S = 0.1  # a dump that has not grown for so long is whole
_HEADER = re.compile(r"^(?:(Current thread|Thread) (0x[0-9a-f]+)|Stack)\b.*\(most recent call first\):$")
_FRAME = re.compile(r'^  File "(.*)", line (\d+) in (.*)$')
_FATAL = "Fatal Python error: "
_WORKER = str(Path(__file__).parents[1] / "worker.py")


@dataclass(frozen=True)
class RankStack:
    """What is known of one rank. `heartbeat` and `age_s` are None for a rank that has not written one yet."""

    rank: int
    heartbeat: Heartbeat | None
    age_s: float | None  # since the heartbeat, by this machine's clock
    process_state: str | None  # psutil's word, for a process of this machine
    threads: dict[str, str] = field(default_factory=dict)  # stacks by the threads' names, empty without an answer

    @property
    def is_silent(self) -> bool:
        """Whether the heartbeat is older than it should be."""
        return self.age_s is None or self.age_s > SILENT_AFTER_S

    @property
    def main(self) -> str:
        """The stack of the main thread from the worker's own frames on; empty without an answer."""
        return self.threads.get(MAIN_THREAD, "")


def read_stacks(run: RunDirectory, *, world_size: int, all_threads: bool = False) -> list[RankStack]:
    """Ask every rank for its stack, and return what came within `ANSWER_S`, by rank."""
    asked = time.monotonic()
    heartbeats = {heartbeat.rank: heartbeat for heartbeat in run.read_heartbeats()}
    answers = ask(run, heartbeats.values(), all_threads=all_threads)
    moved = {beat.rank for beat in run.read_heartbeats() if beat.rank in heartbeats and beat != heartbeats[beat.rank]}
    heard = dict.fromkeys(moved | answers.keys(), time.monotonic() - asked)
    return [_look_at(rank, heartbeats.get(rank), answers.get(rank, {}), heard.get(rank)) for rank in range(world_size)]


def ask(
    run: RunDirectory, heartbeats: Iterable[Heartbeat], *, all_threads: bool = False, wake: bool = False
) -> dict[int, dict[str, str]]:
    """Return the stacks of these ranks by rank and thread; a rank that does not answer within `ANSWER_S` is left out.

    With `wake`, processes that are stopped (SIGSTOP) are continued: only then can they answer.
    """
    ranks = {heartbeat.rank: heartbeat for heartbeat in heartbeats}
    earlier = {heartbeat.rank: heartbeat.time for heartbeat in run.read_heartbeats()}
    dumps = {rank: dump for rank, beat in ranks.items() if (dump := _Dump.request(run, beat, wake=wake)) is not None}
    needs_file = all_threads or ranks.keys() != dumps.keys()
    found: dict[int, dict[str, str]] = {}
    deadline = time.monotonic() + ANSWER_S
    with _requested(run) if needs_file else nullcontext():
        while time.monotonic() < deadline:
            if needs_file:
                new = [beat for beat in run.read_heartbeats() if beat.time != earlier.get(beat.rank)]
                found |= {beat.rank: beat.threads for beat in new if beat.rank in ranks and beat.threads}
            is_answered = ranks.keys() <= found.keys() if all_threads else ranks.keys() <= found.keys() | dumps.keys()
            if is_answered and all(dump.is_whole for dump in dumps.values()):
                break
            time.sleep(_POLL_S)
    main = {rank: {MAIN_THREAD: text} for rank, dump in dumps.items() if (text := dump.main)}
    return main | found


def answer_requests(run: RunDirectory, rank: int, *, owns_process: bool) -> None:
    """Have this process write its main thread's stack to the run directory whenever `STACK_SIGNAL` comes.

    The stack of a fault that kills the process (such as a segmentation fault) is written there as well, or to standard
    error where the process is not the worker's own. To be called from the main thread. Raises `OSError` where the file
    cannot be made.
    """
    path = run.stack(rank)
    path.parent.mkdir(exist_ok=True)
    file = path.open("wb")  # faulthandler keeps it open; the stacks of an earlier attempt go
    faulthandler.register(STACK_SIGNAL, file=file, all_threads=False)
    if owns_process:
        faulthandler.enable(file=file)
    elif sys.__stderr__ is not None:
        faulthandler.enable(file=sys.__stderr__)


def read_own_threads() -> dict[str, str]:
    """Return the stacks of all threads of this process by their names.

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
        for name in [names.get(ident, "a thread that Python did not start")]
    }


def read_fatal_error(run: RunDirectory, rank: int) -> str | None:
    """Return what faulthandler wrote when a fault killed the rank: the error and the stack; None if nothing did."""
    try:
        _, found, text = run.stack(rank).read_text(encoding="utf-8", errors="replace").rpartition(_FATAL)
    except OSError:
        return None
    stacks = [stack for _, stack in parse_dump(text)]
    return f"{text.splitlines()[0]}\n{stacks[0] if stacks else ''}" if found else None


def parse_dump(text: str) -> Iterator[tuple[str, str]]:
    """Yield thread and stack from what faulthandler writes, the current thread first.

    The thread is its number in hexadecimal, empty for a dump of one thread alone. The stack reads like a traceback: the
    innermost call last, with the lines of source, and without the frames that called the worker.
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
    own = next((place for place, frame in enumerate(frames) if frame.filename == _WORKER), 0)
    return "".join(traceback.StackSummary.from_list(frames[own:]).format())


class _Dump:
    """A stack that a process of this machine was asked for by the signal."""

    def __init__(self, path: Path, start: int) -> None:
        self._path = path
        self._start = start  # what the file held before
        self._size = start
        self._grown_s = time.monotonic()

    @classmethod
    def request(cls, run: RunDirectory, heartbeat: Heartbeat, *, wake: bool) -> "_Dump | None":
        """Send the signal; None where the process is not on this machine, cannot answer, or is another user's."""
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
    def is_whole(self) -> bool:
        """Whether an answer has come, and has not grown for a moment."""
        size = self._path.stat().st_size
        if size != self._size:
            self._size, self._grown_s = size, time.monotonic()
        return size > self._start and time.monotonic() - self._grown_s >= _SETTLED_S

    @property
    def main(self) -> str:
        """The newest stack in the answer; empty if none has come."""
        with self._path.open("rb") as file:
            file.seek(self._start)
            stacks = [stack for _, stack in parse_dump(file.read().decode(errors="replace"))]
        return stacks[-1] if stacks else ""


@contextmanager
def _requested(run: RunDirectory) -> Iterator[None]:
    """Keep `stacks-request` in the run directory for a while, where that can be written."""
    with suppress(OSError):
        run.stacks_request.touch()
    try:
        yield
    finally:
        with suppress(OSError):
            run.stacks_request.unlink(missing_ok=True)


def _look_at(rank: int, heartbeat: Heartbeat | None, threads: dict[str, str], heard_s: float | None) -> RankStack:
    """Return what is known of a rank; it was heard of within `heard_s`, if at all.

    The clock of another machine may be off by minutes: a rank there that was heard of is no older than that.
    """
    if heartbeat is None:
        return RankStack(rank, None, None, None)
    is_here = heartbeat.host == socket.gethostname()
    age_s = max(0.0, time.time() - heartbeat.time)
    if not is_here and heard_s is not None:
        age_s = min(age_s, heard_s)
    return RankStack(rank, heartbeat, age_s, state_of(heartbeat.pid) if is_here else None, threads)
