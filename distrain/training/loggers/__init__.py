"""Sinks: where the records of a run go. `metrics.jsonl` is the truth; the others are copies of it."""

from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from typing import Self

from distrain.system.loop_guard import LoopGuard
from distrain.training.loggers import console, jsonl
from distrain.training.loggers.background import Background
from distrain.training.loggers.protocol import Opening, Record, Sink


class Sinks:
    """All sinks of a run, open from `__enter__` to `__exit__`. On ranks other than 0 there are none."""

    def __init__(self, opening: Opening | None) -> None:
        self._opening = opening
        self._sinks: list[Sink] = []
        self._stack = ExitStack()
        self._guard = LoopGuard("showing the metrics")

    def __enter__(self) -> Self:
        opening = self._opening
        if opening is None:
            return self
        wanted = {"tensorboard": opening.recipe.log.tensorboard, "wandb": opening.recipe.log.wandb != "disabled"}
        self._sinks = [jsonl.JsonlSink(opening), console.ConsoleSink(opening)]
        self._sinks += [Background(name, COPIES[name], opening) for name, is_wanted in wanted.items() if is_wanted]
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


def _open_tensorboard(opening: Opening) -> Sink:
    from distrain.training.loggers.tensorboard import (
        TensorboardSink,  # seconds of imports, which the sink's own thread makes
    )

    return TensorboardSink(opening)


def _open_wandb(opening: Opening) -> Sink:
    from distrain.training.loggers.wandb import WandbSink

    return WandbSink(opening)


COPIES: dict[str, Callable[[Opening], Sink]] = {"tensorboard": _open_tensorboard, "wandb": _open_wandb}
