"""Turns an end of the process that code asks for in the middle of a training into an exception, and says it in words.

Python lets any code end its process: by `sys.exit`, which is an exception that few handlers see, or by `os._exit`,
which is none. The exit code is then the code's own choice, often 0, and whoever started the process takes it for
success.
"""

import os
import sysconfig
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

# How the names of distrain's threads begin that run the user's code and report its errors.
LOADER_THREADS = "distrain-loader"
end_process = os._exit  # as Python has it: for the ends that distrain itself decides on
_FAILED = 1


class ProcessExit(SystemExit):
    """`os._exit` was called, with the `code` of a `SystemExit`, at a `place` in words."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.place = _place(traceback.extract_stack())


@contextmanager
def exits_raised(report: Callable[[BaseException], None]) -> Iterator[None]:
    """Have `os._exit` raise `ProcessExit` in this process, and not in its forks.

    In a thread of the user's own an exception would end that thread alone. There `report` is called with it, and the
    process ends after all, with a code that says that it failed.
    """
    owner = os.getpid()

    def exit_with(status: int) -> None:
        if os.getpid() != owner:
            end_process(status)
        thread = threading.current_thread()
        if thread is threading.main_thread() or thread.name.startswith(LOADER_THREADS):
            raise ProcessExit(status)
        try:
            report(ProcessExit(status))
        finally:
            end_process(status or _FAILED)

    os._exit = exit_with  # type: ignore[assignment]
    try:
        yield
    finally:
        os._exit = end_process


def describe_end(error: BaseException) -> str | None:
    """Return in a sentence what has ended a training by `error`, where that is no usual exception; else None.

    Those are the ends that code asks for, and the end of an iterator, which Python takes for the end of a loop.
    """
    if isinstance(error, RuntimeError) and isinstance(error.__cause__, StopIteration):
        error = error.__cause__  # raised in a generator: Python has wrapped it
    place = error.place if isinstance(error, ProcessExit) else _place(traceback.extract_tb(error.__traceback__))
    if isinstance(error, SystemExit):
        code = "" if error.code is None else repr(error.code)
        name = "os._exit" if isinstance(error, ProcessExit) else "sys.exit"
        return f"{name}({code}) was called before the run had finished, {place}"
    if isinstance(error, KeyboardInterrupt):
        return f"KeyboardInterrupt was raised before the run had finished, {place}"
    if isinstance(error, StopIteration):
        return f"StopIteration was raised before the run had finished, {place}: an iterator has ended there"
    return None


def as_exception(error: BaseException) -> Exception:
    """Return an error that other code may handle as it handles any: what is not one becomes a `RuntimeError`."""
    words = describe_end(error)
    if words is None and isinstance(error, Exception):
        return error
    return RuntimeError(words or f"{type(error).__name__}: {error}").with_traceback(error.__traceback__)


def _place(frames: traceback.StackSummary) -> str:
    """Return where it happened: the innermost line of the user's code if there is one, else the innermost of all."""
    libraries = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    libraries.add(str(Path(__file__).parent))
    own = [
        frame
        for frame in frames
        if not frame.filename.startswith("<") and not any(Path(frame.filename).is_relative_to(p) for p in libraries)
    ]
    innermost = [*frames, *own][-1:]  # of the user's, if one is
    return "".join(f"at {frame.filename}:{frame.lineno}, in {frame.name}" for frame in innermost) or "somewhere"
