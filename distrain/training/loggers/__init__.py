"""LoggerCollection: where the records of a run go. `metrics.jsonl` is the truth; the others are copies of it."""

import copy
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from typing import Self

from distrain.config.parts import LoggerPart
from distrain.config.user_code import load_factory
from distrain.errors import RecipeError
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
        own = [(part.name, own_logger(part)) for part in context.recipe.log.loggers]  # before anything is open
        enabled = {"tensorboard": context.recipe.log.tensorboard, "wandb": context.recipe.log.wandb != "disabled"}
        self._loggers = [jsonl.JsonlLogger(context), console.ConsoleLogger(context)]
        self._loggers += [
            Background(name, BACKGROUND_LOGGERS[name], context) for name, is_enabled in enabled.items() if is_enabled
        ]
        self._loggers += [Background(name, factory, context) for name, factory in own]
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
                logger.write(dict(record))


def own_logger(part: LoggerPart) -> Callable[[LoggerContext], MetricLogger]:
    """Import the user's logger, and return what opens it; raises `RecipeError` where there is no such logger.

    It is opened in its own thread, with a copy of the history: what it does with that changes no other logger.
    """
    factory = load_factory(part.name, part.arguments, key="log.loggers", given=("context",))
    if isinstance(factory, type) and (missing := [name for name in ("write", "close") if not hasattr(factory, name)]):
        raise RecipeError(f"log.loggers={part.name} has no method {missing[0]}; a logger has write(record) and close()")

    def open_logger(context: LoggerContext) -> MetricLogger:
        logger: MetricLogger = factory(
            replace(context, history=copy.deepcopy(context.history)), **copy.deepcopy(part.arguments)
        )
        return logger

    return open_logger


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
