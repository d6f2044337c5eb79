"""LoggerCollection: where the records of a run go. `metrics.jsonl` is the truth; the others are copies of it."""

from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from typing import Self

from distrain.system.loop_guard import LoopGuard
from distrain.training.loggers import console, jsonl
from distrain.training.loggers.background import Background
from distrain.training.loggers.protocol import LoggerContext, MetricLogger, Record
from distrain.training.loggers.sample_sheet import writing_sample_sheet


class LoggerCollection:
    """All loggers of a run, open from `__enter__` to `__exit__`. On ranks other than 0 there are none."""

    def __init__(self, context: LoggerContext | None) -> None:
        self._opening = context
        self._loggers: list[MetricLogger] = []
        self._stack = ExitStack()
        self._guard = LoopGuard("showing the metrics")

    def __enter__(self) -> Self:
        context = self._opening
        if context is None:
            return self
        enabled = {"tensorboard": context.recipe.log.tensorboard, "wandb": context.recipe.log.wandb != "disabled"}
        self._loggers = [jsonl.JsonlLogger(context), console.ConsoleLogger(context)]
        self._loggers += [
            Background(name, BACKGROUND_LOGGERS[name], context) for name, is_enabled in enabled.items() if is_enabled
        ]
        self._stack.enter_context(writing_sample_sheet(context.run, context.samples))
        for logger in self._loggers:
            self._stack.callback(logger.close)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def write(self, record: Record) -> None:
        """Give one step's record to every logger: metrics.jsonl first, then what only copies or shows it."""
        for number, logger in enumerate(self._loggers):
            with self._guard if number else nullcontext():
                logger.write(record)


def _open_tensorboard(context: LoggerContext) -> MetricLogger:
    from distrain.training.loggers.tensorboard import (
        TensorboardLogger,  # takes seconds to import, in the logger's own thread
    )

    return TensorboardLogger(context)


def _open_wandb(context: LoggerContext) -> MetricLogger:
    from distrain.training.loggers.wandb import WandbLogger

    return WandbLogger(context)


BACKGROUND_LOGGERS: dict[str, Callable[[LoggerContext], MetricLogger]] = {
    "tensorboard": _open_tensorboard,
    "wandb": _open_wandb,
}
