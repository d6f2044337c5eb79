"""LoggerCollection: where the records of a run go. `metrics.jsonl` is the truth; the others are copies of it."""

from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from typing import Self

from distrain.system.loop_guard import LoopGuard
from distrain.training.loggers import console, jsonl
from distrain.training.loggers.background import Background
from distrain.training.loggers.protocol import LoggerContext, MetricLogger, Record


class LoggerCollection:
    """All sinks of a run, open from `__enter__` to `__exit__`. On ranks other than 0 there are none."""

    def __init__(self, context: LoggerContext | None) -> None:
        self._opening = context
        self._sinks: list[MetricLogger] = []
        self._stack = ExitStack()
        self._guard = LoopGuard("showing the metrics")

    def __enter__(self) -> Self:
        context = self._opening
        if context is None:
            return self
        enabled = {"tensorboard": context.recipe.log.tensorboard, "wandb": context.recipe.log.wandb != "disabled"}
        self._sinks = [jsonl.JsonlLogger(context), console.ConsoleLogger(context)]
        self._sinks += [
            Background(name, BACKGROUND_LOGGERS[name], context) for name, is_enabled in enabled.items() if is_enabled
        ]
        for sink in self._sinks:
            self._stack.callback(sink.close)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def write(self, record: Record) -> None:
        """Give one step's record to every sink: metrics.jsonl first, then what only copies or shows it."""
        for number, sink in enumerate(self._sinks):
            with self._guard if number else nullcontext():
                sink.write(record)


def _open_tensorboard(context: LoggerContext) -> MetricLogger:
    from distrain.training.loggers.tensorboard import (
        TensorboardLogger,  # seconds of imports, which the sink's own thread makes
    )

    return TensorboardLogger(context)


def _open_wandb(context: LoggerContext) -> MetricLogger:
    from distrain.training.loggers.wandb import WandbLogger

    return WandbLogger(context)


BACKGROUND_LOGGERS: dict[str, Callable[[LoggerContext], MetricLogger]] = {
    "tensorboard": _open_tensorboard,
    "wandb": _open_wandb,
}
