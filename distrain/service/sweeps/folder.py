"""Defines the folder of a sweep: `RUNS/NAME`, beside the runs of its trials `RUNS/NAME-0007`; it is no run itself."""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from distrain.errors import RunError
from distrain.runs.directory import RunDirectory
from distrain.service.sweeps.spec import SweepSpec, read_spec
from distrain.service.sweeps.trial import Trial
from distrain.system import locks
from distrain.system.files import read_whole, strict_json, write_atomically

SPEC = "sweep.yaml"  # by which a folder is one of a sweep


class SweepFolder:
    """The folder of a sweep; the controller that holds its lock is the only one that writes to it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.spec = path / SPEC
        self.base = path / "base.yaml"  # the recipe that the trials change
        self.trials = path / "trials.jsonl"
        self.repeats = path / "repeats.jsonl"  # the best trials with other seeds
        self.best = path / "best.yaml"
        self.importance = path / "importance.json"
        self.journal = path / "journal.log"  # of Optuna
        self.code = path / "code"  # a copy of the user's code, which all trials run
        self.report = path / "report.html"
        self._lock = path / "lock"

    @property
    def name(self) -> str:
        """The name of the sweep, with which those of its runs begin."""
        return self.path.name

    @property
    def exists(self) -> bool:
        """Whether the folder contains a sweep."""
        return self.spec.is_file()

    def is_of_a_start(self, path: Path) -> bool:
        """Whether a path in the folder may be left from a start that was killed before it had written the spec."""
        return path in {self.base, self.code} or path.name.startswith(self._lock.name)

    @property
    def is_held(self) -> bool:
        """Whether a controller runs the sweep."""
        return locks.is_held(self._lock)

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Hold the lock of the controller; raises `RunError` where another one runs the sweep."""
        try:
            with locks.hold(self._lock):
                yield
        except locks.HeldError as error:
            raise RunError(f"sweep {self.name} is run by {error}; wait for its end, or stop it with Ctrl-C") from None

    def run(self, trial: Trial) -> RunDirectory:
        """Return the run of a trial."""
        return RunDirectory(self.path.parent / trial.run)

    def run_name(self, number: int, seed: int | None = None) -> str:
        """Return the name of the run of a trial, or of its repetition with another seed."""
        return f"{self.name}-{number:04}" + ("" if seed is None else f"-seed{seed}")

    def read_spec(self) -> SweepSpec:
        """Read what the sweep does."""
        return read_spec(self.spec)

    def write_spec(self, spec: SweepSpec) -> None:
        """Save what the sweep does, which makes the folder one of a sweep."""
        write_atomically(self.spec, spec.to_yaml())

    def read_trials(self) -> list[Trial]:
        """Read the trials in the order of their numbers; raises `RunError` where the file is damaged."""
        return _read(self.trials)

    def read_repeats(self) -> list[Trial]:
        """Read the repetitions of the best trials with other seeds."""
        return _read(self.repeats)

    def write_trials(self, trials: Iterable[Trial]) -> None:
        """Replace the file of the trials."""
        _write(self.trials, trials)

    def write_repeats(self, repeats: Iterable[Trial]) -> None:
        """Replace the file of the repetitions."""
        _write(self.repeats, repeats)

    def read_importance(self) -> dict[str, float]:
        """Return how much of the variance of the metric each parameter explains; empty where it is not known yet."""
        return read_whole(self.importance, lambda text: {str(k): float(v) for k, v in json.loads(text).items()}) or {}


def find_sweeps(root: Path) -> list[SweepFolder]:
    """Return the sweeps directly below `root`, by name."""
    if not root.is_dir():
        return []
    found = [SweepFolder(path) for path in sorted(root.iterdir()) if not path.is_symlink()]
    return [folder for folder in found if folder.exists]


def find_sweep(reference: str, root: Path) -> SweepFolder | None:
    """Return the sweep of this path, or of this name below `root`; None where there is none."""
    for path in (Path(reference).expanduser().absolute(), root.absolute() / reference):
        folder = SweepFolder(path.parent if path.name == SPEC else path)
        if reference and folder.exists:
            return folder
    return None


def _read(path: Path) -> list[Trial]:
    parse = Trial.model_validate_json
    return read_whole(path, lambda text: [parse(line) for line in text.splitlines() if line]) or []


def _write(path: Path, trials: Iterable[Trial]) -> None:
    write_atomically(path, "".join(f"{strict_json(trial.model_dump(exclude_none=False))}\n" for trial in trials))
