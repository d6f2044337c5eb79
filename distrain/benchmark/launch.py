"""Launches a measurement in a temporary run directory, like a training run; imports no torch."""

import dataclasses
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from distrain.benchmark.results import BenchmarkResult, read_figures
from distrain.config import Recipe, change_recipe
from distrain.config.profile import Profile
from distrain.launchers import LAUNCHERS
from distrain.launchers.launch_task import launch_task
from distrain.runs.directory import RunDirectory
from distrain.runs.task import BenchmarkRequest

POLL_S = 0.2
_PREFIX = ".distrain-measures-"
_ABANDONED_S = 1800.0  # older unused folders are those of killed processes; clocks may differ by minutes
_ENDLESS = 1_000_000  # epochs: a short recipe's schedule must not end within the measurement


@dataclass(frozen=True)
class Measured:
    """The result for one number of processes, and the time from the launch to the end of the first step."""

    figures: BenchmarkResult
    start_up_s: float


def run_benchmark(
    recipe: Recipe, profile: Profile, request: BenchmarkRequest, *, place: Path, title: str, console: Console
) -> Measured:
    """Measure the request on the processes of the profile, in a temporary run directory in `place`.

    `console` shows the progress. Raises `StoppedError` after a stop, a `UserError` for an invalid request, and
    `TaskError` with the first failure of a process.
    """
    remove_leftovers(place)
    with tempfile.TemporaryDirectory(prefix=_PREFIX, dir=place) as name:
        run = RunDirectory(Path(name) / recipe.name)
        plan = LAUNCHERS[profile.launcher](profile, run.path)
        # A separate process even for a single one: it starts with nothing in memory, and leaves nothing there.
        plan = dataclasses.replace(plan, in_process=False, env={**profile.variables, **plan.env})
        with _shown(run, title, console):
            started = launch_task(
                run,
                _endless(recipe),
                profile,
                plan,
                request,
                results=run.figures,
                keeps_logs=False,
                notify=lambda text: console.print(text, markup=False),
            )
        figures = read_figures(run)
    return Measured(figures, figures.began - started)


def remove_leftovers(place: Path) -> None:
    """Delete the folders of killed measurements."""
    for folder in place.glob(f"{_PREFIX}*"):
        with suppress(OSError):  # another measurement may end at the same time
            is_old = time.time() - folder.stat().st_mtime > _ABANDONED_S
            if is_old and not any(RunDirectory(path).is_held for path in folder.iterdir()):
                shutil.rmtree(folder, ignore_errors=True)


def _endless(recipe: Recipe) -> Recipe:
    """Return the recipe to measure: the same steps, with random weights, and without an end or external loggers."""
    changes = [
        f"train.epochs={_ENDLESS}",
        "train.max_steps=null",
        "train.max_time=null",
        "train.target_loss=null",
        "model.weights=null",  # loading takes time, and does not change that of a step
        "model.weights_entry=null",
        "model.partial=false",
        "log.tensorboard=false",
        "log.wandb=disabled",
    ]
    return change_recipe(recipe, changes)


@contextmanager
def _shown(run: RunDirectory, title: str, console: Console) -> Iterator[None]:
    """Show on a terminal what is being measured; elsewhere only the title."""
    if not console.is_terminal:
        console.print(f"measuring {title}", markup=False)
        yield
        return
    over = threading.Event()
    with console.status(f"{title}: start-up") as status:

        def follow() -> None:
            while not over.wait(POLL_S):
                if run.stage.exists():
                    status.update(f"{title}: {run.stage.read_text(encoding='utf-8')}")

        thread = threading.Thread(target=follow, name="distrain-stage", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
