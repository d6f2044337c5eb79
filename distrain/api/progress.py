"""Shows a run while it trains: one live line in a notebook, or what the command line shows in a terminal."""

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any

from rich.console import Console

from distrain.config import Recipe, read_recipe
from distrain.config.metrics import ALWAYS_MEASURED, format_loss, format_metric
from distrain.errors import DistrainError
from distrain.runs.directory import RunDirectory
from distrain.runs.liveness import LIVE_STATES
from distrain.runs.status import Status
from distrain.system.display import Column, duration
from distrain.system.live_line import LiveLine, with_bar

_NOTEBOOK_WIDTH = 110  # cells of a line that fits beside the sidebar of most screens
_EVERY_S = 1.0  # a run writes its status once a second

Show = Callable[[], None]


@contextmanager
def shown_progress(run: RunDirectory, *, is_shown: bool, log_start: int | None) -> Iterator[Show]:
    """Show the run during the block; yields a function to call again and again.

    A notebook gets one line, which is replaced in place. Otherwise a terminal has a live line, and what the launcher in
    the background prints, from position `log_start` of its log on, is printed here; None for a launcher elsewhere.
    """
    if not is_shown:
        yield lambda: None
    elif in_notebook():
        line = _NotebookLine(run)
        yield line.draw
        line.draw(is_last=True)
    else:
        with _LogCopy(run, log_start) as copy:
            yield copy.print_new


def in_notebook() -> bool:
    """Whether this is the kernel of a notebook, which shows rich output."""
    return getattr(find_shell(), "kernel", None) is not None


def find_shell() -> Any:
    """Return the shell of IPython that runs this code, or None."""
    return getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()


def describe_progress(run: RunDirectory, recipe: Recipe | None, width: int) -> str:
    """Return how a run is doing in one line of at most `width` cells."""
    status = Status()
    with suppress(DistrainError, OSError):
        status = run.read_status()
    is_live = status.state in LIVE_STATES
    share = status.step / max(1, status.total_steps)
    state = "starting" if status.state == "queued" else "" if status.state == "running" else status.state
    return with_bar(
        [Column(run.path.name), Column(state), *_columns(run, status, recipe, is_live=is_live)], width, share=share
    )


def _columns(run: RunDirectory, status: Status, recipe: Recipe | None, *, is_live: bool) -> list[Column]:
    if not status.total_steps:
        return []
    columns = []
    if recipe is not None:
        columns.append(Column(f"epoch {max(1, math.ceil(status.epoch))}/{recipe.train.epochs}", 5))
    columns.append(Column(f"step {status.step}/{status.total_steps}"))
    newest = run.read_newest_metrics()
    if "train/loss" in newest:
        columns.append(Column(f"loss {format_loss(newest['train/loss'])}", 1))
    if status.last is not None:
        columns.append(Column(format_metric(ALWAYS_MEASURED, status.last), 4))
        if status.best_by != ALWAYS_MEASURED:
            columns.append(Column(format_metric(status.best_by, status.last), 2))
    if is_live and "train/samples_per_s" in newest:
        columns.append(Column(f"{newest['train/samples_per_s']:,.0f} samples/s", 3))
    if is_live and status.eta_s:
        columns.append(Column(f"ETA {duration(status.eta_s)}", 1))
    return columns


class _NotebookLine:
    """An output of the current cell that is replaced once a second, where it has changed."""

    def __init__(self, run: RunDirectory) -> None:
        self._run = run
        self._recipe = _read_recipe(run)
        self._handle: Any = None
        self._text = ""
        self._next_s = 0.0

    def draw(self, *, is_last: bool = False) -> None:
        """Draw the line, unless it was drawn within the last second."""
        if time.monotonic() < self._next_s and not is_last:
            return
        self._next_s = time.monotonic() + _EVERY_S
        text = describe_progress(self._run, self._recipe, _NOTEBOOK_WIDTH)
        if text == self._text:
            return
        from IPython.display import display

        self._text, content = text, {"text/plain": text}
        if self._handle is None:
            self._handle = display(content, raw=True, display_id=True)  # type: ignore[no-untyped-call]  # IPython has no types
        else:
            self._handle.update(content, raw=True)


class _LogCopy:
    """Prints what a log gets, above a live line where this is a terminal."""

    def __init__(self, run: RunDirectory, start: int | None) -> None:
        self._run = run
        self._start = start
        self._file: IO[str] | None = None
        self._rest = ""
        self._console = Console(highlight=False, soft_wrap=True)
        recipe = _read_recipe(run)
        self._line = LiveLine(self._console, lambda width: describe_progress(run, recipe, width))

    def __enter__(self) -> "_LogCopy":
        self._line.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.print_new()
        self._line.stop()
        if self._file is not None:
            self._file.close()

    def print_new(self) -> None:
        """Print the whole lines that the log has got since the last call."""
        if self._start is None:
            return
        if self._file is None:
            self._file = self._run.console_log.open(encoding="utf-8", errors="replace")
            self._file.seek(self._start)
        self._rest += self._file.read()
        lines, newline, self._rest = self._rest.rpartition("\n")
        if newline:
            self._console.print(lines, markup=False)


def _read_recipe(run: RunDirectory) -> Recipe | None:
    with suppress(DistrainError, OSError):
        return read_recipe(run.recipe)
    return None
