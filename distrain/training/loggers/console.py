"""Shows a person how a run is doing: a live line in a terminal, and a line that stays for every evaluation."""

import logging
import os
import pdb
import sys
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console

from distrain.config.metrics import ALWAYS_MEASURED, format_loss, format_metric
from distrain.system.display import Column, Line, duration
from distrain.system.live_line import LiveLine, with_bar
from distrain.training.loggers.protocol import LoggerContext, Moment, Record

PLAIN_LINE_EVERY_S = 10.0
_LOSS_WIDTH, _RATE_WIDTH, _TIME_WIDTH = len("loss 0.1234"), len("12,345/s"), len("ETA 9 h 59 min")
_WIDE = 100  # cells from which on a live line names the unit of its rate

log = logging.getLogger(__name__)


class ConsoleLogger:
    """Shows epoch, step, losses, metrics, samples/s and the time left, and logs a line for every evaluation.

    A line reports what it was measured for: after an evaluation the means over the epoch so far and that evaluation, at
    any other record the means since the record before. The live line shows the newest numbers that are known.
    """

    def __init__(self, context: LoggerContext) -> None:
        self._opening = context
        self._console = Console(highlight=False, soft_wrap=True)
        self._newest: Record = {}
        for record in context.history:
            self._newest |= record
        self._began_s = self._last_line_s = time.monotonic()
        self._evaluating_since_s: float | None = None
        self._live = LiveLine(self._console, self._draw)
        self._breakpoint: Callable[..., Any] = sys.breakpointhook
        sys.breakpointhook = self._stop_and_break
        self._live.start()

    def write(self, record: Record) -> None:
        """Show the newest numbers; an evaluation also leaves a line behind."""
        should_evaluate, is_verbose = "val/loss" in record, self._opening.recipe.log.verbose
        is_late = not self._console.is_terminal and time.monotonic() - self._last_line_s > PLAIN_LINE_EVERY_S
        shown = dict(record)
        if should_evaluate and not (is_verbose and "train/loss" in record):
            shown |= _of_epoch(self._opening.now())
        self._newest |= shown
        if should_evaluate or is_verbose or is_late:
            self._last_line_s = time.monotonic()
            log.info(self._line(shown))

    def close(self) -> None:
        """Leave the terminal as it was."""
        self._live.stop()
        sys.breakpointhook = self._breakpoint

    def _line(self, record: Record) -> Line:
        step = int(record["step"])
        columns = [Column(self._epoch(step), width=len(self._epoch(self._opening.total_steps)))]
        return Line((*columns, Column(self._step(step), 5, self._step_width), *self._numbers(record)))

    def _draw(self, width: int) -> str:
        """Return the live line: the current activity replaces the step's numbers where there is little room."""
        now = self._opening.now()
        columns = [
            Column(self._epoch(max(1, now.step)), width=len(self._epoch(self._opening.total_steps))),
            Column(self._step(now.step), 0, self._step_width),
            Column(_activity(now), 0),
            *self._numbers(self._newest, unit=" samples/s" if width >= _WIDE else "/s"),
            Column(self._time_left(now), 1, _TIME_WIDTH),
        ]
        share = now.step / self._opening.total_steps
        if now.phase == "evaluate" and now.to_evaluate:
            share = now.evaluated / now.to_evaluate
        return with_bar(columns, width, share=share)

    def _epoch(self, step: int) -> str:
        """Return the epoch that the step belongs to; 0 before the first one."""
        return f"epoch {-(-step // self._opening.steps_per_epoch)}/{self._opening.recipe.train.epochs}"

    def _step(self, step: int) -> str:
        return f"step {step}/{self._opening.total_steps}"

    @property
    def _step_width(self) -> int:
        return len(self._step(self._opening.total_steps))

    def _numbers(self, record: Record, *, unit: str = " samples/s") -> list[Column]:
        """Return what the record holds of loss, metrics and speed, the most important ones last to be dropped."""
        columns = []
        if "train/loss" in record:
            columns.append(Column(f"loss {format_loss(record['train/loss'])}", 1, _LOSS_WIDTH))
        if "val/loss" in record:
            columns.append(Column(format_metric(ALWAYS_MEASURED, record), 4))
            shown = [name for name in self._opening.shown_metrics if name != ALWAYS_MEASURED]
            columns += [Column(format_metric(name, record), 4 if number else 2) for number, name in enumerate(shown)]
        if "train/samples_per_s" in record:
            columns.append(Column(f"{record['train/samples_per_s']:,.0f}{unit}", 3, _RATE_WIDTH))
        return columns

    def _time_left(self, now: Moment) -> str:
        """Return the time left at the mean pace of this attempt, its evaluations and checkpoints included."""
        clock_s = time.monotonic()
        done, left = now.step - self._opening.first_step, self._opening.total_steps - now.step
        seconds = left * (clock_s - self._began_s) / done if done else None
        if now.phase != "evaluate":
            self._evaluating_since_s = None
        else:
            self._evaluating_since_s = self._evaluating_since_s or clock_s
            took_s, rest = clock_s - self._evaluating_since_s, now.to_evaluate - now.evaluated
            seconds = seconds + rest * took_s / now.evaluated if seconds is not None and now.evaluated else None
        if now.phase == "close":
            return ""
        return "ETA -" if seconds is None else f"ETA {duration(seconds)}"

    def _stop_and_break(self, *args: Any, **kwargs: Any) -> Any:
        """Give the terminal to the debugger, in the frame of the caller: a live line would write over its prompt."""
        self._live.stop()
        sys.breakpointhook = self._breakpoint
        if self._breakpoint is sys.__breakpointhook__ and "PYTHONBREAKPOINT" not in os.environ:
            return pdb.Pdb().set_trace(sys._getframe(1))
        return self._breakpoint(*args, **kwargs)


def _activity(now: Moment) -> str:
    """Return what the training does instead of taking steps; nothing while it does."""
    if now.phase == "evaluate":
        return f"evaluating {now.evaluated}/{now.to_evaluate}" if now.to_evaluate else "evaluating"
    return "closing the loggers" if now.phase == "close" else ""


def _of_epoch(now: Moment) -> Record:
    means = {"train/loss": now.epoch_loss, "train/samples_per_s": now.epoch_samples_per_s}
    return {name: value for name, value in means.items() if value is not None}
