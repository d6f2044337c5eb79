"""Turns an end of the process that code asks for in the middle of a training into an exception, and says it in words.

Python lets any code end its process: by `sys.exit`, which is an exception that few handlers see, or by `os._exit`,
which is none. The exit code is then the code's own choice, often 0, and whoever started the process takes it for
success.
"""

import functools
import inspect
import os
import sysconfig
import threading
import traceback
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# How the names of distrain's threads begin that run the user's code and report its errors.
LOADER_THREADS = "distrain-loader"
end_process = os._exit  # as Python has it: for the ends that distrain itself decides on
_FAILED = 1
_FRAMES = "distrain_frames"  # an attribute of errors that come from another process


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


def own_frame(error: BaseException, packages: Collection[str] = ()) -> traceback.FrameSummary | None:
    """Return the innermost line of the user's code that an error came through; None where it came through none.

    That is code outside of Python's library, of distrain and of what is installed, unless it is one of `packages`. A
    syntax error is where the code that does not parse stands.
    """
    frames = traceback.extract_tb(error.__traceback__)
    frames += getattr(error, _FRAMES, [])
    if isinstance(error, SyntaxError) and error.filename is not None:
        frames.append(traceback.FrameSummary(error.filename, error.lineno, "this module"))
    return next((frame for frame in reversed(frames) if _is_own(frame, packages)), None)


def keep_frames(error: BaseException, *, of: BaseException) -> None:
    """Let `own_frame` find, in the process that `error` is sent to, the lines that `of` came through in this one."""
    setattr(error, _FRAMES, [*traceback.extract_tb(of.__traceback__)])


def _is_own(frame: traceback.FrameSummary, packages: Collection[str]) -> bool:
    path = Path(frame.filename)
    if frame.filename.startswith("<") or path.is_relative_to(Path(__file__).parents[1]):
        return False
    for folder in ("site-packages", "dist-packages"):
        if folder in path.parts:
            return Path(path.parts[path.parts.index(folder) + 1]).stem in packages
    return not any(path.is_relative_to(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib"))


def place_of(frame: traceback.FrameSummary) -> str:
    """Return where a line is, as text."""
    return f"at {frame.filename}:{frame.lineno}, in {frame.name}"


def place_of_code(own: Any) -> str:
    """Return ` at FILE:LINE, in NAME` of the user's code that `own` is, or that a call of it runs; else nothing.

    `own` is a function, a class, a module of torch's, or another object that can be called.
    """
    while isinstance(own, functools.partial):
        own = own.func
    try:
        if not (inspect.isclass(own) or hasattr(own, "__code__")):
            own = getattr(own, "forward", None) or type(own).__call__
        own = inspect.unwrap(own)
        frame = traceback.FrameSummary(inspect.getsourcefile(own) or "<", inspect.getsourcelines(own)[1], own.__name__)
    except (OSError, TypeError, AttributeError):  # it is written in C, or its file is gone
        return ""
    return f" {place_of(frame)}" if _is_own(frame, ()) else ""


def _place(frames: traceback.StackSummary) -> str:
    """Return where it happened: the innermost line of the user's code if there is one, else the innermost of all."""
    own = [frame for frame in frames if _is_own(frame, ())]
    innermost = [*frames, *own][-1:]  # of the user's, if one is
    return "".join(map(place_of, innermost)) or "somewhere"
