"""Gathers what is known about a run from its files, for a page or a report; what is damaged or missing is a note."""

import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from distrain.config import Recipe, read_recipe
from distrain.config.profile import Profile, read_profile
from distrain.errors import RunError, UserError
from distrain.runs import checkpoints
from distrain.runs.attempts import ExplainedAttempt, explain_attempts
from distrain.runs.directory import RunDirectory
from distrain.runs.local_job import LocalJob
from distrain.runs.overview import Overview, read_each
from distrain.runs.query import describe_unsaved
from distrain.system.files import NotRegularError, read_regular, read_whole

T = TypeVar("T")


@dataclass(frozen=True)
class DataFacts:
    """What the newest checkpoint knows about the data."""

    classes: tuple[str, ...] = ()
    image_shape: tuple[int, ...] = ()  # of a training image before the last transforms: channels, height, width
    samples_seen: int | None = None  # training samples up to that checkpoint
    step: int = 0  # of that checkpoint


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """A run at one moment. `recipe`, `profile` and `environment` are empty where their files are missing or damaged."""

    overview: Overview
    time: float  # when it was read, in seconds since the epoch
    recipe: Recipe | None
    recipe_text: str
    profile: Profile | None
    environment: Mapping[str, Any]
    data: DataFacts
    kept: tuple[checkpoints.Entry, ...]  # checkpoints, the oldest first
    attempts: tuple[ExplainedAttempt, ...]
    job: LocalJob | None
    notes: tuple[str, ...]  # sentences on what could not be read, and on what no checkpoint holds

    @property
    def run(self) -> RunDirectory:
        """The folder of the run."""
        return self.overview.run


def read_facts(run: RunDirectory) -> RunFacts:
    """Read a run; where its status cannot be read, `overview.fault` says why, and nothing else about it is certain."""
    overview = read_each([run])[0]
    notes: list[str] = []
    kept = checkpoints.read_catalog(run.checkpoints)
    if overview.fault is None and (unsaved := describe_unsaved(run)) is not None:
        notes.append(unsaved)
    return RunFacts(
        overview=overview,
        time=time.time(),
        recipe=_read(lambda: read_recipe(run.recipe), notes),
        recipe_text=_read(lambda: read_regular(run.recipe, errors="replace"), notes) or "",
        profile=_read(lambda: read_profile(run.profile), notes),
        environment=_read(lambda: _read_environment(run), notes) or {},
        data=_read_data(kept[-1].path) if kept else DataFacts(),
        kept=tuple(kept),
        attempts=tuple(explain_attempts(run, overview.status, state=overview.state)) if overview.fault is None else (),
        job=_read(run.read_local_job, notes),
        notes=tuple(notes),
    )


def _read(read: Callable[[], T], notes: list[str]) -> T | None:
    """Return what `read` returns; where it raises, append the reason to the notes and return None."""
    try:
        return read()
    except UserError as error:
        notes.append("; ".join(error.lines))
    except NotRegularError as error:
        notes.append(str(error))
    except OSError as error:
        notes.append(f"{error.filename} cannot be read: {error.strerror}")
    return None


def _read_environment(run: RunDirectory) -> Mapping[str, Any]:
    found = read_whole(run.environment, lambda text: dict(json.loads(text)))
    if found is None:
        raise RunError(f"{run.environment.name} is missing, so versions, devices and code are not known")
    return found


def _read_data(path: Path) -> DataFacts:
    with suppress(
        OSError, ValueError, KeyError, TypeError, RecursionError
    ):  # a damaged checkpoint, or of an earlier version
        state = checkpoints.read(path).state
        return DataFacts(
            classes=tuple(map(str, state["classes"])),
            image_shape=tuple(map(int, state["input"]["shape"])),
            samples_seen=int(state["samples_seen"]),
            step=int(state["step"]),
        )
    return DataFacts()
