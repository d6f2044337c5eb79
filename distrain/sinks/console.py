"""Owns what a person sees while training: a live line in a terminal, and now and then a plain line elsewhere."""

import logging
import os
import pdb
import sys
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from distrain.metrics import ALWAYS_MEASURED, in_words
from distrain.report import duration
from distrain.sinks.protocol import Opening, Record

REFRESHES_PER_S = 4
PLAIN_LINE_EVERY_S = 10.0

log = logging.getLogger(__name__)


class ConsoleSink:
    """Shows epoch, step, losses, metrics, samples/s and the time left, and logs a line for every evaluation."""

    def __init__(self, opening: Opening) -> None:
        self._opening = opening
        self._console = Console(highlight=False)
        self._latest: Record = {}
        for record in opening.history:
            self._latest |= record
        self._last_line = time.monotonic()
        self._progress = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(bar_width=None),
            _StepColumn(opening.current_step),
            TextColumn("{task.fields[metrics]}"),
            _TimeLeftColumn(opening.current_step, opening.first_step),
            console=self._console,
            refresh_per_second=REFRESHES_PER_S,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task = self._progress.add_task("train", total=opening.total_steps, epoch="-", metrics="")
        self._show()
        self._breakpoint: Callable[..., Any] = sys.breakpointhook
        sys.breakpointhook = self._stop_and_break
        self._progress.start()

    def write(self, record: Record) -> None:
        """Take the newest numbers; an evaluation also leaves a line behind."""
        self._latest |= record
        self._show()
        is_late = not self._console.is_terminal and time.monotonic() - self._last_line > PLAIN_LINE_EVERY_S
        is_due = is_late or self._opening.recipe.log.verbose
        if "val/loss" in record or is_due:
            self._last_line = time.monotonic()
            step = f"{int(record['step'])}/{self._opening.total_steps}"
            log.info("epoch %s  step %s  %s", self._epoch(), step, self._metrics())

    def close(self) -> None:
        """Leave the terminal as it was."""
        self._progress.stop()
        sys.breakpointhook = self._breakpoint

    def _show(self) -> None:
        if self._progress.disable:
            return
        self._progress.update(
            self._task,
            completed=self._latest.get("step", self._opening.first_step),
            epoch=self._epoch(),
            metrics=self._metrics(),
        )

    def _epoch(self) -> str:
        return f"{self._latest.get('epoch', 0):.4g}/{self._opening.recipe.train.epochs}"

    def _metrics(self) -> str:
        parts = []
        if "train/loss" in self._latest:
            parts.append(f"loss {self._latest['train/loss']:.4f}")
        if "val/loss" in self._latest:
            parts += [in_words(name, self._latest) for name in (ALWAYS_MEASURED, *self._opening.shown_metrics)]
        if "train/samples_per_s" in self._latest:
            parts.append(f"{self._latest['train/samples_per_s']:,.0f} samples/s")
        return "  ".join(parts)

    def _stop_and_break(self, *args: Any, **kwargs: Any) -> Any:
        """Give the terminal to the debugger, in the frame of the caller: a live line would write over its prompt."""
        self._progress.stop()
        sys.breakpointhook = self._breakpoint
        if self._breakpoint is sys.__breakpointhook__ and "PYTHONBREAKPOINT" not in os.environ:
            return pdb.Pdb().set_trace(sys._getframe(1))
        return self._breakpoint(*args, **kwargs)


class _StepColumn(ProgressColumn):
    """The step that the loop is at right now, between two records."""

    def __init__(self, current_step: Callable[[], int]) -> None:
        super().__init__()
        self._current_step = current_step

    def render(self, task: Task) -> Text:
        return Text(f"step {self._current_step()}/{task.total:.0f}")


class _TimeLeftColumn(ProgressColumn):
    """The time left at the mean pace of this attempt, its evaluations and checkpoints included."""

    def __init__(self, current_step: Callable[[], int], first_step: int) -> None:
        super().__init__()
        self._current_step = current_step
        self._first_step = first_step

    def render(self, task: Task) -> Text:
        done = self._current_step() - self._first_step
        if not done or task.elapsed is None or task.total is None:
            return Text("ETA -")
        return Text(f"ETA {duration((task.total - self._first_step - done) * task.elapsed / done)}")
