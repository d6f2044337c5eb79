"""Defines the run directory: every file name in it, how its files are written, and who may write to it.

The folder is the whole contract between the control plane and the training plane.
"""

import json
import os
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from distrain.errors import RunError
from distrain.runs.format import FORMAT_VERSION, check_format
from distrain.runs.status import AttemptMark, Heartbeat, Job, Status
from distrain.system import locks
from distrain.system.files import read_readable, read_whole, texts_of, to_json
from distrain.system.filesystem import check_writable

RESERVE_BYTES = 1 << 18
BUNDLE = "bundle.json"  # in the folder of an exported network
RANK_EXIT_TIMEOUT_S = 10.0  # the ranks of a launcher that was killed end within it


class RunDirectory:
    """A run's folder: `path`, the names of all files in it, and the ways in which they are written."""

    def __init__(self, path: Path, *, node_rank: int = 0) -> None:
        self.path = path
        self.node_rank = node_rank
        self.recipe = path / "recipe.yaml"
        self.profile = path / "profile.yaml"
        self.plan = path / "plan.json"
        self.rendezvous = path / "rendezvous.json"  # written by node 0: the others see that they share the folder
        self.job = path / "job.json"  # the SLURM job that trains the run, and how it was submitted
        self.code = path / "code"  # a copy of the user's code, which the job runs
        self.environment = path / "env.json"
        self.status = path / "status.json"
        self.stop = path / "stop"
        self.metrics = path / "metrics.jsonl"
        self.lock = path / "lock"  # held by rank 0 while it trains
        self.launcher_lock = path / "launcher-lock"  # held by the launcher, also between two attempts
        self.reserve = path / "reserve"
        self.micro_batch = path / "micro-batch.json"  # what train.micro_batch_size=auto has found
        self.logs = path / "logs"
        self.launcher_log = self.logs / (f"launcher-{node_rank}.log" if node_rank else "launcher.log")
        # What this machine's terminal has shown; beside rank 0 that is what this rank has said as well.
        self.spoken_log = self.launcher_log if node_rank else self.log(0)
        self.errors = path / "errors"
        self.attempt_errors = self.errors / "attempt.json"  # which of them are of the newest attempt
        self.heartbeats = path / "heartbeats"
        self.stacks = path / "stacks"
        self.stacks_request = path / "stacks-request"  # while it exists, heartbeats hold the stacks of all threads
        self.flight_records = path / "flight-recorder"  # NCCL's latest calls, written when an attempt has stalled
        self.flight_request = path / "flight-recorder-request"  # while it exists, ranks write theirs
        self.traces = path / "profile"
        self.checkpoints = path / "checkpoints"
        self.evaluations = path / "evaluations"  # run directories of their own, one for each question to a checkpoint
        self.task = path / "task.json"  # what a worker does here: train, evaluate or benchmark
        self.findings = path / "findings.json"
        self.answers = path / "answers.npz"
        self.stage = path / "stage"  # what is being measured now, in words
        self.figures = path / "figures.json"
        self.export = path / "export"  # bundles and graphs for other programs
        self.tensorboard = path / "tensorboard"
        self.wandb = path / "wandb"
        self.wandb_id = self.wandb / "run-id"

    def __fspath__(self) -> str:
        return str(self.path)

    @property
    def exists(self) -> bool:
        """Whether the folder holds a run: anything else in its place is left alone."""
        return self.recipe.is_file()

    def check_format(self) -> None:
        """Raise `RunError` where a newer distrain wrote the run, whose files this one may misread."""
        check_format(self.status)

    def log(self, rank: int) -> Path:
        """Return the log of one rank, appended to over restarts."""
        return self.logs / f"rank-{rank}.log"

    def accelerate_config(self, node_rank: int) -> Path:
        """Return the configuration that accelerate reads on one machine."""
        return self.path / (f"accelerate-{node_rank}.yaml" if node_rank else "accelerate.yaml")

    def error(self, rank: int) -> Path:
        """Return where a rank writes the exception that ended it."""
        return self.errors / f"rank-{rank}.json"

    def flight_record(self, rank: int) -> Path:
        """Return where a rank writes its latest collective calls over NCCL; torchfrtrace reads files so named."""
        return self.flight_records / f"rank-{rank}"

    def trace(self, rank: int) -> Path:
        """Return where a rank writes what the torch profiler saw, a Chrome trace."""
        return self.traces / f"rank-{rank}.json"

    def heartbeat(self, rank: int) -> Path:
        """Return where a rank says once a second where it stands."""
        return self.heartbeats / f"rank-{rank}.json"

    def stack(self, rank: int) -> Path:
        """Return the file to which a rank writes its Python stack, on request and when a fault kills it."""
        return self.stacks / f"rank-{rank}.txt"

    def create(self) -> None:
        """Make the folder; raises `RunError` where something else stands in its place."""
        self._check_place()
        for folder in (self.path, *self._folders):
            folder.mkdir(parents=True, exist_ok=True)

    def _check_place(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise RunError(f"run directory {self.path} is a file; name a folder with --run")
        if self.path.is_dir() and not self.exists and not all(map(self._is_of_a_start, self.path.iterdir())):
            raise RunError(f"run directory {self.path} holds other files and no run; name a new folder with --run")

    @contextmanager
    def created(self) -> Iterator[None]:
        """Make the folder, and remove a new one where the block raises: a start that is refused leaves nothing behind.

        The folders above it that were made for it go as well.
        """
        self._check_place()  # before the block below, which deletes
        is_new = not self.exists
        missing = [folder for folder in self.path.absolute().parents if not folder.exists()]
        try:
            self.create()
            yield
        except BaseException:
            if is_new and not self.is_held:  # another start of the same run may have been faster
                self.remove(missing)
            raise

    @property
    def _folders(self) -> tuple[Path, ...]:
        return self.logs, self.errors, self.heartbeats, self.checkpoints

    def _is_of_a_start(self, path: Path) -> bool:
        """Whether a start that was killed at once may have left `path`: an empty folder, or a lock."""
        if path in self._folders:
            return path.is_dir() and not any(path.iterdir())
        return path.name.startswith((self.lock.name, self.launcher_lock.name))

    def check_writable(self, *, otherwise: str) -> None:
        """Raise `StorageError` where this user cannot write to the run; `otherwise` says what else can be done."""
        check_writable(self.path, otherwise=otherwise)

    def remove(self, above: Iterable[Path] = ()) -> None:
        """Delete the folder and all in it, and then the folders `above` it, the nearest first, while they are empty."""
        shutil.rmtree(self.path, ignore_errors=True)
        with suppress(OSError):
            for folder in above:
                folder.rmdir()

    def read_status(self) -> Status:
        """Read where the run stands; a folder without a status is a queued run. Raises `RunError` for a damaged one."""
        return read_whole(self.status, _status) or Status()

    def has_ended(self, earlier: AttemptMark) -> bool:
        """Return whether an attempt after the `earlier` one has ended well: saved on request, or at its end."""
        status = self.read_status()
        return status.state in {"stopped", "finished"} and status.mark != earlier

    def write_status(self, status: Status) -> None:
        """Replace the status in one step, so that a reader never sees half of it."""
        write_atomically(self.status, to_json(status.model_copy(update={"format_version": FORMAT_VERSION})))

    def read_micro_batch_size(self) -> int | None:
        """Return the samples of a micro-batch that the run has found to fit into memory, None where it has not."""
        return read_whole(self.micro_batch, lambda text: int(json.loads(text)["micro_batch_size"]))

    def write_micro_batch_size(self, size: int) -> None:
        """Write down what fits into memory, so that every later attempt takes the same."""
        write_atomically(self.micro_batch, json.dumps({"micro_batch_size": size}))

    def read_job(self) -> Job | None:
        """Return the SLURM job of the run, None for a run that never had one."""
        return read_whole(self.job, lambda text: Job.model_validate(json.loads(text)))

    def write_job(self, job: Job) -> None:
        """Write down which SLURM job trains the run."""
        write_atomically(self.job, to_json(job))

    def read_metrics(self) -> list[dict[str, Any]]:
        """Return the records of metrics; a line that a crash has cut short, or a disk damaged, is left out."""
        lines = "".join(texts_of([self.metrics])).split("\n")[:-1]
        return read_readable((line for line in lines if line.endswith("}")), _record)

    def write_error(self, report: dict[str, Any]) -> None:
        """Write what ended a rank: its `rank`, the `time`, and what `report.print_failure` tells."""
        write_atomically(self.error(report["rank"]), json.dumps(report, indent=1))

    def write_heartbeat(self, heartbeat: Heartbeat) -> None:
        """Replace a rank's heartbeat."""
        write_atomically(self.heartbeat(heartbeat.rank), heartbeat.model_dump_json(indent=1))

    def read_heartbeats(self) -> list[Heartbeat]:
        """Return the last heartbeat of each rank that has written one, by rank."""
        found = read_readable(texts_of(self.heartbeats.glob("rank-*.json")), Heartbeat.model_validate_json)
        return sorted(found, key=lambda heartbeat: heartbeat.rank)

    @contextmanager
    def hold_trainer_lock(self, patience_s: float = 0.0) -> Iterator[str | None]:
        """Train in the run, as the only process that does; raises `RunError` where another one does all this time.

        Yields None, or a note for the user about the lock (`distrain.system.locks`).
        """
        with self._hold(self.lock, patience_s) as note:
            yield note

    @contextmanager
    def hold_launcher_lock(self) -> Iterator[str | None]:
        """Launch the run, as the only process that does; raises `RunError` where another one does.

        Yields what `hold_trainer_lock` does.
        """
        with self._hold(self.launcher_lock, patience_s=0.0) as note:
            yield note

    @property
    def is_held(self) -> bool:
        """Whether a process on a machine that shares locks with this one launches the run or trains in it."""
        return any(locks.is_held(path) for path in (self.launcher_lock, self.lock))

    @contextmanager
    def _hold(self, path: Path, patience_s: float) -> Iterator[str | None]:
        try:
            with locks.hold(path, patience_s=patience_s) as note:
                yield note
        except locks.HeldError as error:
            raise RunError(
                f"run directory {self.path} is in use by {error}; wait for it, or train in another one with --run"
            ) from None

    @contextmanager
    def reserved_disk_space(self) -> Iterator[None]:
        """Hold a little of the disk and give it back at the end: a run that a full disk ends can still write why."""
        with suppress(OSError):  # a disk that is full already
            self.reserve.write_bytes(bytes(RESERVE_BYTES))
        try:
            yield
        finally:
            with suppress(OSError):
                self.reserve.unlink(missing_ok=True)


def new_run_directory(name: str, root: Path) -> RunDirectory:
    """Name a new run below `root`: its recipe, its start, and four hex digits against collisions."""
    return RunDirectory(root / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}")


def _status(text: str) -> Status:
    return Status.model_validate({"format_version": 0, **json.loads(text)})


def _record(line: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(line)
    return {**record, "step": record["step"]}


def write_atomically(path: Path, text: str) -> None:
    """Write `text` beside `path`, then rename it there: readers see the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)
    except OSError as error:  # a full disk: what was written of the draft would take up space
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        error.filename, error.filename2 = str(path), None  # not the draft, which the user does not know
        raise


def sync(path: Path) -> None:
    """Bring what a file holds, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
