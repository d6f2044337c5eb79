"""Turns an exit of the process requested by code during training into an exception, and describes it.

In Python, any code can end its process: by `sys.exit`, an exception that few handlers catch, or by `os._exit`, which
raises nothing. The code also chooses the exit code, often 0, which the parent process takes for success.
"""

import functools
import inspect
import os
import sysconfig
import threading
import traceback
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Prefix of the names of those threads of distrain that run the user's code and report its errors.
LOADER_THREADS = "distrain-loader"
end_process = os._exit  # the original one, for exits that distrain itself decides on
_FAILED = 1
_FRAMES = "distrain_frames"  # an attribute of errors that come from another process


class ProcessExit(SystemExit):
    """`os._exit` was called, with the `code` of a `SystemExit`; `place` is the line of code as text."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.place = _place(traceback.extract_stack())


@contextmanager
def exits_raised(report: Callable[[BaseException], None]) -> Iterator[None]:
    """Make `os._exit` raise `ProcessExit` in this process, but not in its forks.

    In a thread of the user's code an exception would only end that thread. There `report` is called with the exception,
    and the process still ends, with the exit code of a failure.
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
    """Return a sentence on the exception that ended a run, if it is a special one; else None.

    Special are exits that code requests, and `StopIteration`, which Python takes for the end of a loop.
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
        return f"StopIteration was raised before the run had finished, {place}: an iterator is exhausted there"
    return None


def as_exception(error: BaseException) -> Exception:
    """Return an error that other code can handle like any other: a special one becomes a `RuntimeError`."""
    sentence = describe_end(error)
    if sentence is None and isinstance(error, Exception):
        return error
    return RuntimeError(sentence or f"{type(error).__name__}: {error}").with_traceback(error.__traceback__)


def user_frame(error: BaseException, packages: Collection[str] = ()) -> traceback.FrameSummary | None:
    """Return the innermost frame of the user's code in an error's traceback; None where there is none.

    User code is outside of Python's library, of distrain and of installed packages, except `packages`. The frame of a
    syntax error is the line that does not parse.
    """
    frames = traceback.extract_tb(error.__traceback__)
    frames += getattr(error, _FRAMES, [])
    if isinstance(error, SyntaxError) and error.filename is not None:
        frames.append(traceback.FrameSummary(error.filename, error.lineno, "this module"))
    return innermost_user_frame(frames, packages)


def innermost_user_frame(
    frames: Sequence[traceback.FrameSummary], packages: Collection[str] = ()
) -> traceback.FrameSummary | None:
    """Return the last of these frames that is the user's code, as `user_frame` defines it; None where there is none."""
    return next((frame for frame in reversed(frames) if _is_user_code(frame, packages)), None)


def keep_frames(error: BaseException, *, of: BaseException) -> None:
    """Attach the frames of the error `of` to `error`, so that `user_frame` finds them in another process."""
    setattr(error, _FRAMES, [*traceback.extract_tb(of.__traceback__)])


def _is_user_code(frame: traceback.FrameSummary, packages: Collection[str]) -> bool:
    path = Path(frame.filename)
    if frame.filename.startswith("<") or path.is_relative_to(Path(__file__).parents[1]):
        return False
    for folder in ("site-packages", "dist-packages"):
        if folder in path.parts:
            return Path(path.parts[path.parts.index(folder) + 1]).stem in packages
    return not any(path.is_relative_to(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib"))


def place_of(frame: traceback.FrameSummary) -> str:
    """Return the file, line and function of a frame as text."""
    return f"at {frame.filename}:{frame.lineno}, in {frame.name}"


def place_of_code(target: Any) -> str:
    """Return ` at FILE:LINE, in NAME` if `target`, or what a call of it runs, is the user's code; else an empty string.

    `target` is a function, a class, a torch module, or another callable.
    """
    while isinstance(target, functools.partial):
        target = target.func
    try:
        if not (inspect.isclass(target) or hasattr(target, "__code__")):
            target = getattr(target, "forward", None) or type(target).__call__
        target = inspect.unwrap(target)
        frame = traceback.FrameSummary(
            inspect.getsourcefile(target) or "<", inspect.getsourcelines(target)[1], target.__name__
        )
    except (OSError, TypeError, AttributeError):  # it is written in C, or its file is gone
        return ""
    return f" {place_of(frame)}" if _is_user_code(frame, ()) else ""


def _place(frames: traceback.StackSummary) -> str:
    """Return the innermost frame of the user's code as text, or the innermost of all where there is none."""
    user_frames = [frame for frame in frames if _is_user_code(frame, ())]
    innermost = [*frames, *user_frames][-1:]
    return "".join(map(place_of, innermost)) or "somewhere"
