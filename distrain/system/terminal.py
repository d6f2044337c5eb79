"""Keeps a process alive whose terminal is gone: output that cannot be written is dropped, or goes to a log.

`guard_output` replaces the standard streams, so that one mechanism works for everything that writes to them: distrain,
rich's live line and its thread, libraries, the user's `print`, and Python's flush at exit.
"""

import errno
import io
import os
import select
import stat
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, TextIO, cast

from distrain.errors import ExitCode, OutputError
from distrain.system.encoding import accept_any_text

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

PATIENCE_S = 10.0  # how long a reader that does not read may block training
SHOW_CURSOR = "\x1b[?25h"
_STREAMS = ((1, "stdout"), (2, "stderr"))
_ESCAPE = b"\x1b"
_MAX_AT_ONCE = select.PIPE_BUF  # bytes that a pipe that is ready accepts without blocking
_POLL_MS = 1000  # how late the watching thread may end


class Output(io.RawIOBase):
    """One standard stream, unbuffered.

    Standard error is tolerant: what it cannot write is lost. Standard output is tolerant within `tolerating_loss`.
    Otherwise, a closed pipe ends the process (`distrain runs | head`), and any other error is an `OutputError`.
    """

    name: str  # shown by io.TextIOWrapper as its name

    def __init__(self, descriptor: int, name: str) -> None:
        self.name = f"<{name}>"
        self.is_tolerant = descriptor == 2
        self.log: int | None = None  # a descriptor to which lost output is written
        self._descriptor = descriptor
        self._is_gone = False  # the terminal or pipe is closed for good
        self._is_stuck = False  # the reader does not read at the moment
        self._in_log = threading.local()

    @contextmanager
    def logged_already(self) -> Iterator[None]:
        """Do not copy to the log what this thread writes in the block: it is logged by other means."""
        self._in_log.is_set = True
        try:
            yield
        finally:
            self._in_log.is_set = False

    def write(self, data: "ReadableBuffer", /) -> int:
        """Write all of `data`; returns its length, even where it is lost."""
        whole = memoryview(data).cast("B")
        # A redrawn live line does not belong in a log.
        is_logged = getattr(self._in_log, "is_set", False) or _ESCAPE in whole.tobytes()
        if self._is_gone and (is_logged or self.log is None):
            return len(whole)
        lost = self._write(whole)
        if self.log is not None and lost and not is_logged:
            with suppress(OSError):
                os.write(self.log, lost)
        return len(whole)

    def let_go(self) -> None:
        """Redirect the descriptor, so that child processes and libraries in C can write to it again."""
        if not self._is_gone:
            self._is_gone = True
            self._redirect()
            _end_live_lines()

    def set_log(self, log: int | None) -> None:
        """Write lost output to a log from now on, or drop it."""
        self.log = log
        if self._is_gone:
            self._redirect()

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._descriptor

    def isatty(self) -> bool:
        """Whether this is a terminal that still exists."""
        return os.isatty(self._descriptor)

    def writable(self) -> bool:
        """Return True: the stream can be written to."""
        return True

    def _write(self, whole: memoryview) -> memoryview:
        """Write as much as possible, and return the rest."""
        rest = whole
        while rest:
            if self.is_tolerant and not self._is_ready():
                break
            try:
                rest = rest[os.write(self._descriptor, rest[:_MAX_AT_ONCE]) :]
            except BlockingIOError:  # another process has made the shared terminal non-blocking
                select.select([], [self._descriptor], [])
            except OSError as error:
                self._lose(error)
                break
        return rest

    def _is_ready(self) -> bool:
        """Wait up to `PATIENCE_S` for a reader that has stopped reading (Ctrl-S, `less`), but not a second time."""
        poller = select.poll()
        poller.register(self._descriptor, select.POLLOUT)
        is_ready = bool(poller.poll(0 if self._is_stuck else PATIENCE_S * 1000))
        self._is_stuck = not is_ready
        return is_ready

    def _lose(self, error: OSError) -> None:
        is_gone = error.errno in {errno.EPIPE, errno.EBADF} or (error.errno == errno.EIO and self._is_device())
        if is_gone or not self.is_tolerant:
            self.let_go()
        if self.is_tolerant:
            return
        if error.errno == errno.EPIPE:
            raise SystemExit(ExitCode.FINISHED)
        raise OutputError(f"the output cannot be written: {error.strerror}")

    def _is_device(self) -> bool:
        return stat.S_ISCHR(os.fstat(self._descriptor).st_mode)

    def _redirect(self) -> None:
        with suppress(OSError):
            if self.log is not None:
                os.dup2(self.log, self._descriptor)
                return
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, self._descriptor)
            os.close(null)


def guard_output() -> None:
    """Replace the standard streams of this process; a descriptor that was closed from the start is opened on /dev/null.

    Otherwise the next file that is opened would get its number, and the output of a child would go into that file.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # noqa: FBT003 - the lowest free number: this one
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - stays open until the process ends
    for descriptor, name in _STREAMS:
        stream = _wrap(Output(descriptor, name), getattr(sys, name))
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    accept_any_text()


@contextmanager
def tolerating_loss(log: Path | None = None) -> Iterator[None]:
    """Tolerate lost output in the block; it is appended to `log`, or dropped.

    Does nothing where the standard streams are not those of `guard_output`, as in a notebook.
    """
    outputs = list(_outputs())
    before = [(output.is_tolerant, output.log) for output in outputs]
    is_outermost = any(not output.is_tolerant for output in outputs)
    descriptor = None
    if log is not None and outputs:
        with suppress(OSError):  # the disk is full from the start: lost output is dropped
            descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    over = threading.Event()
    for output in outputs:
        output.is_tolerant = True
        if descriptor is not None:
            output.set_log(descriptor)
    if is_outermost:
        threading.Thread(target=_watch, args=(outputs, over), name="distrain-terminal", daemon=True).start()
    try:
        yield
    finally:
        over.set()
        if outputs:
            sys.stdout.flush()
            sys.stderr.flush()
        for output, (is_tolerant, earlier) in zip(outputs, before, strict=True):
            output.is_tolerant = is_tolerant
            output.set_log(earlier)
        if descriptor is not None:
            os.close(descriptor)


@contextmanager
def logged_already() -> Iterator[None]:
    """Print messages in the block that are already in the log: they are not written there again if they are lost."""
    with ExitStack() as stack:
        for output in _outputs():
            stack.enter_context(output.logged_already())
        yield


def write_last_words(text: str) -> None:
    """Write to standard output without buffers, for a process that is about to end; errors are ignored."""
    with suppress(OSError):
        os.write(1, text.encode(errors="replace"))


def _wrap(output: Output, replaced: TextIO | None) -> TextIO:
    encoding, errors, is_unbuffered = "utf-8", "backslashreplace", False
    if isinstance(replaced, io.TextIOWrapper):
        encoding, is_unbuffered = replaced.encoding, replaced.write_through
        errors = errors if replaced.errors == "strict" else replaced.errors or errors
    return io.TextIOWrapper(
        cast("io.BufferedWriter", output) if is_unbuffered else io.BufferedWriter(output),
        encoding=encoding,
        errors=errors,
        line_buffering=output.isatty(),
        write_through=is_unbuffered,
    )


def _outputs() -> Iterator[Output]:
    for stream in (sys.__stdout__, sys.__stderr__):
        buffer = stream.buffer if isinstance(stream, io.TextIOWrapper) else None
        raw = buffer.raw if isinstance(buffer, io.BufferedWriter) else buffer
        if isinstance(raw, Output):
            yield raw


def _end_live_lines() -> None:
    """Restore the streams that rich has replaced: it would redraw its live line for a terminal that is gone."""
    for _, name in _STREAMS:
        if (proxied := getattr(getattr(sys, name), "rich_proxied_file", None)) is not None:
            setattr(sys, name, proxied)


def _watch(outputs: list[Output], over: threading.Event) -> None:
    """Redirect a stream as soon as its terminal or pipe is closed, even while nothing is written here.

    Otherwise SIGPIPE would kill a child process that writes to it.
    """
    poller = select.poll()
    waiting = {output.fileno(): output for output in outputs}
    for descriptor in waiting:
        poller.register(descriptor, 0)  # only POLLERR and POLLHUP
    while waiting and not over.is_set():
        for descriptor, _ in poller.poll(_POLL_MS):
            poller.unregister(descriptor)
            waiting.pop(descriptor).let_go()
