"""Calls the hooks of a run on rank 0: one that raises is disabled, and one that is slow is reported."""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from distrain.config.parts import HookPart
from distrain.config.user_code import load_reference, make_part
from distrain.errors import RecipeError
from distrain.messages import joined, nearest, type_and_first_line
from distrain.runs.checkpoints import committed
from distrain.runs.checkpoints.paths import step_of
from distrain.runs.directory import RunDirectory
from distrain.runs.stop_file import read_stop_reason
from distrain.system.exits import place_of, place_of_code, user_frame
from distrain.training.hooks.hook import (
    CheckpointSaved,
    EvaluationEnd,
    Hook,
    RecordWritten,
    StepEnd,
    TrainingEnd,
    TrainingStart,
    TrainingStop,
)
from distrain.training.train_state import TrainState

MAX_SHARE = 0.1  # of the time of the steps; a hook that takes more is reported
MIN_REPORTED_S = 0.5  # seconds that a hook has taken in all before that counts
EVENTS = tuple(name for name in vars(Hook) if name.startswith("on_"))

log = logging.getLogger(__name__)


class Hooks:
    """The hooks of a run, each with its name in messages."""

    def __init__(self, hooks: Sequence[tuple[str, Hook]]) -> None:
        self._hooks = dict(hooks)
        self._seconds = dict.fromkeys(self._hooks, 0.0)  # of an attempt
        self._steps_s = 0.0
        self._slow: set[str] = set()
        self._saved: set[int] = set()  # the checkpoints that the hooks know of

    def start(self, event: TrainingStart, *, checkpoints: Path) -> None:
        """Begin an attempt; the checkpoints that exist are not news."""
        self._seconds, self._steps_s = dict.fromkeys(self._seconds, 0.0), 0.0
        self._saved = {step_of(path) for path in committed(checkpoints)}
        self._call("on_start", event)

    def step_end(self, step: int, *, epoch: float, lr: float) -> None:
        """Tell that `step` steps are done."""
        self._call("on_step_end", StepEnd(step, epoch, lr))

    def evaluation(self, step: int, *, epoch: float, metrics: dict[str, float], is_best: bool) -> None:
        """Tell the result of an evaluation."""
        self._call("on_evaluation", EvaluationEnd(step, epoch, MappingProxyType(dict(metrics)), is_best))

    def record(self, record: dict[str, float]) -> None:
        """Tell the metrics of a record."""
        metrics = {name: value for name, value in record.items() if "/" in name}
        self._call("on_record", RecordWritten(int(record["step"]), record["epoch"], MappingProxyType(metrics)))

    def boundary(self, checkpoints: Path, *, steps_s: float) -> None:
        """Tell which checkpoints are new, and report slow hooks; `steps_s` are the seconds of the newest steps."""
        self.find_checkpoints(checkpoints)
        self._steps_s += steps_s
        for name, seconds in self._seconds.items():
            share = seconds / self._steps_s if self._steps_s else 0.0
            if name not in self._slow and seconds >= MIN_REPORTED_S and share > MAX_SHARE:
                self._slow.add(name)
                log.warning(
                    "hook %s is slow: %.1f s so far, %.0f%% of the time of the steps (more than %.0f%% is reported)",
                    *(name, seconds, 100 * share, 100 * MAX_SHARE),
                )

    def find_checkpoints(self, checkpoints: Path) -> None:
        """Tell which checkpoints are new."""
        if not any(_overrides(hook, "on_checkpoint") for hook in self._hooks.values()):
            return
        for path in committed(checkpoints):
            if (step := step_of(path)) not in self._saved:
                self._saved.add(step)
                self._call("on_checkpoint", CheckpointSaved(step, path))

    @contextmanager
    def telling_failure(self, state: TrainState) -> Iterator[None]:
        """Tell that the training in the block has failed, if it does."""
        try:
            yield
        except Exception:
            self._call("on_end", TrainingEnd(state.step, "failed"))
            raise

    def end(self, run: RunDirectory, step: int, *, is_complete: bool) -> None:
        """Tell that the training of this process has ended, or was stopped."""
        self.find_checkpoints(run.checkpoints)
        if not is_complete:
            self._call("on_stop", TrainingStop(step, read_stop_reason(run) or "stopped"))
        self._call("on_end", TrainingEnd(step, "finished" if is_complete else "stopped"))

    def _call(self, method: str, event: Any) -> None:
        for name, hook in list(self._hooks.items()):
            if not _overrides(hook, method):
                continue
            started = time.perf_counter()
            try:
                getattr(hook, method)(event)
            except (Exception, SystemExit) as error:
                del self._hooks[name]
                frame = user_frame(error)
                place = "" if frame is None else f", {place_of(frame)}"
                log.warning(
                    "hook %s has raised in %s and is disabled (%s%s); the training continues",
                    *(name, method, type_and_first_line(error), place),
                )
                log.debug("the hook failed", exc_info=error)
            self._seconds[name] += time.perf_counter() - started


def build_hooks(parts: Sequence[HookPart], *, is_new: bool) -> Hooks | None:
    """Make the hooks that a recipe names; None for none.

    Raises `RecipeError` for what is no hook. An error of its constructor is raised where the run `is_new`; a resume
    reports it, and continues without the hook.
    """
    hooks = []
    for number, part in enumerate(parts):
        name = part.name if parts.index(part) == number else f"{part.name} ({number + 1})"
        try:
            hooks.append((name, _check(_make(part), part)))
        except Exception as error:
            if is_new:
                raise
            log.warning("hook %s could not be made and is disabled (%s)", name, type_and_first_line(error))
    return Hooks(hooks) if hooks else None


def _make(part: HookPart) -> object:
    """Return the hook that a reference names: as it is, or made by the class or function of that name."""
    found = load_reference(part.name, key="hooks")
    if isinstance(found, Hook) and not part.arguments:
        return found
    return make_part(part.name, part.arguments, key="hooks")


def _check(made: object, part: HookPart) -> Hook:
    if not isinstance(made, Hook):
        raise RecipeError(f"hooks={part.name} makes {made!r:.60}; name a subclass of distrain.Hook")
    if unknown := [name for name in dir(made) if name.startswith("on_") and name not in EVENTS]:
        hint = nearest(unknown[0], EVENTS, count=1) or f"; use {joined(EVENTS)}"
        raise RecipeError(f"hooks={part.name} has a method {unknown[0]}{place_of_code(type(made))}, never called{hint}")
    return made


def _overrides(hook: Hook, method: str) -> bool:
    return getattr(type(hook), method) is not getattr(Hook, method) or method in vars(hook)
