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

from distrain.config.metrics import restore_nan
from distrain.errors import RunError
from distrain.runs.format import FORMAT_VERSION, check_format
from distrain.runs.local_job import LocalJob, is_local
from distrain.runs.status import AttemptMark, Heartbeat, Job, Status
from distrain.system import locks
from distrain.system.files import (
    NotRegularError,
    open_regular,
    read_readable,
    read_regular,
    read_whole,
    texts_of,
    to_json,
    write_atomically,
)
from distrain.system.filesystem import check_writable

_JOB_PATIENCE_S = 10.0
RESERVE_BYTES = 1 << 18
RECIPE = "recipe.yaml"
SERVE_FOLDER = ".serve"  # beside the runs: the secrets of the page of `distrain serve`
BUNDLE = "bundle.json"  # in the folder of an exported network
NEWEST_BYTES = 1 << 16  # at the end of metrics.jsonl: contains every metric that is recorded regularly
RANK_EXIT_TIMEOUT_S = 10.0  # the ranks of a killed launcher end in this time


class _Below:
    """A path below a run directory; made when it is read, because a list of runs reads few of them."""

    def __init__(self, *names: str) -> None:
        self._names = names

    def __get__(self, run: "RunDirectory", _: object = None) -> Path:
        return run.path.joinpath(*self._names)


class RunDirectory:
    """The folder of a run, `path`, with the names of all files in it, and the methods that read and write them."""

    recipe = _Below(RECIPE)
    profile = _Below("profile.yaml")
    plan = _Below("plan.json")
    rendezvous = _Below("rendezvous.json")  # written by node 0: the others see that they share the folder
    job = _Below("job.json")  # the job that trains the run, of SLURM or of this machine's queue
    job_lock = _Below("job-lock")  # held while the job of the queue is changed
    code = _Below("code")  # a copy of the user's code, which the job runs
    objects = _Below("objects")  # Python objects that were given by value: `distrain.runs.objects`
    environment = _Below("env.json")
    labels = _Below("labels.json")  # tags and a note, which the user writes on the run
    status = _Below("status.json")
    stop = _Below("stop")
    stop_answered = _Below("stop-answered")  # the stop file, from the moment when the ranks have saved
    pause = _Below("pause.json")  # the epoch or step at which a trial of a sweep saves and ends
    metrics = _Below("metrics.jsonl")
    curves = _Below("curves")  # the store from which curves of a long history are drawn, made from metrics.jsonl
    lock = _Below("lock")  # held by rank 0 while it trains
    launcher_lock = _Below("launcher-lock")  # held by the launcher, also between two attempts
    reserve = _Below("reserve")
    sample_sheet = _Below("samples.png")  # the first training inputs as the network gets them
    samples = _Below("samples.json")  # what the sheet shows, and where
    micro_batch = _Below("micro-batch.json")  # the size found by train.micro_batch_size=auto
    logs = _Below("logs")
    console_log = _Below("logs", "console.log")  # of a launcher without a terminal
    errors = _Below("errors")
    attempt_errors = _Below("errors", "attempt.json")  # which of the errors belong to the newest attempt
    heartbeats = _Below("heartbeats")
    stacks = _Below("stacks")
    stacks_request = _Below("stacks-request")  # while it exists, heartbeats contain the stacks of all threads
    flight_records = _Below("flight-recorder")  # NCCL's latest calls, written when an attempt has stalled
    flight_request = _Below("flight-recorder-request")  # while it exists, ranks write their flight records
    traces = _Below("profile")
    checkpoints = _Below("checkpoints")
    evaluations = _Below("evaluations")  # run directories of `distrain eval`, one for each evaluation
    validation = _Below("validation")  # the newest and the best evaluation of the training, as evaluations are
    task = _Below("task.json")  # what a worker does here: train, evaluate or benchmark
    findings = _Below("findings.json")
    answers = _Below("answers.npz")
    confusion_image = _Below("confusion.png")
    mistakes_image = _Below("mistakes.png")  # the worst mistakes of an evaluation on one sheet
    mistake_images = _Below("mistakes")  # the image of each
    stage = _Below("stage")  # what is being measured now, as text
    figures = _Below("figures.json")
    report = _Below("report.html")
    export = _Below("export")  # bundles and graphs for other programs
    tensorboard = _Below("tensorboard")
    wandb = _Below("wandb")
    wandb_id = _Below("wandb", "run-id")

    def __init__(self, path: Path, *, node_rank: int = 0) -> None:
        self.path = path
        self.node_rank = node_rank

    def __fspath__(self) -> str:
        return str(self.path)

    @property
    def launcher_log(self) -> Path:
        """The log of this node's launcher."""
        return self.logs / (f"launcher-{self.node_rank}.log" if self.node_rank else "launcher.log")

    @property
    def terminal_log(self) -> Path:
        """The log with the output of this node's terminal; on node 0, rank 0 prints there as well."""
        return self.launcher_log if self.node_rank else self.log(0)

    @property
    def exists(self) -> bool:
        """Whether the folder contains a run: anything else at this path is left alone."""
        return self.recipe.is_file()

    def check_format(self) -> None:
        """Raise `RunError` where a newer distrain wrote the run, whose files this one may misread."""
        check_format(self.status)

    def log(self, rank: int) -> Path:
        """Return the log of one rank, which restarts append to."""
        return self.logs / f"rank-{rank}.log"

    def accelerate_config(self, node_rank: int) -> Path:
        """Return the configuration file that accelerate reads on one node."""
        return self.path / (f"accelerate-{node_rank}.yaml" if node_rank else "accelerate.yaml")

    def error(self, rank: int) -> Path:
        """Return the file to which a rank writes the exception that ended it."""
        return self.errors / f"rank-{rank}.json"

    def flight_record(self, rank: int) -> Path:
        """Return the file to which a rank writes its latest NCCL calls; torchfrtrace expects this name."""
        return self.flight_records / f"rank-{rank}"

    def trace(self, rank: int) -> Path:
        """Return the file to which a rank writes the Chrome trace of the torch profiler."""
        return self.traces / f"rank-{rank}.json"

    def mistake_image(self, number: int) -> Path:
        """Return the picture of one of an evaluation's worst mistakes, counted from 0."""
        return self.mistake_images / f"{number:03}.png"

    def heartbeat(self, rank: int) -> Path:
        """Return the file to which a rank writes its progress once a second."""
        return self.heartbeats / f"rank-{rank}.json"

    def stack(self, rank: int) -> Path:
        """Return the file to which a rank writes its Python stack, on request and on a fatal error."""
        return self.stacks / f"rank-{rank}.txt"

    def create(self, *, mode: int = 0o777) -> None:
        """Create the folder with this mode; raises `RunError` where something else exists at its path."""
        self._check_place()
        self.path.mkdir(mode=mode, parents=True, exist_ok=True)
        for folder in self._folders:
            folder.mkdir(exist_ok=True)

    def _check_place(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise RunError(f"run directory {self.path} is a file; name a folder with --run")
        if self.path.is_dir() and not self.exists and not all(map(self._is_of_a_start, self.path.iterdir())):
            raise RunError(f"run directory {self.path} contains other files but no run; name a new folder with --run")

    @contextmanager
    def created(self, *, mode: int = 0o777) -> Iterator[None]:
        """Create the folder with this mode; delete a new one, and its new parents, where the block raises.

        So a start that is refused leaves nothing behind.
        """
        self._check_place()  # before the block below, which deletes
        is_new = not self.exists
        missing = [folder for folder in self.path.absolute().parents if not folder.exists()]
        try:
            self.create(mode=mode)
            yield
        except BaseException:
            if is_new and not self.is_held:  # else another start of the same run was faster
                self.remove(missing)
            raise

    @property
    def _folders(self) -> tuple[Path, ...]:
        return self.logs, self.errors, self.heartbeats, self.checkpoints

    def _is_of_a_start(self, path: Path) -> bool:
        """Whether `path` may be left from a start that was killed at once: an empty folder, or a lock."""
        if path in self._folders:
            return path.is_dir() and not any(path.iterdir())
        return path.name.startswith((self.lock.name, self.launcher_lock.name))

    def check_writable(self, *, otherwise: str) -> None:
        """Raise `StorageError` where this user cannot write to the run; `otherwise` is the advice in the message."""
        check_writable(self.path, otherwise=otherwise)

    def remove(self, above: Iterable[Path] = ()) -> None:
        """Delete the folder with its content, then the folders `above` it, the nearest first, while they are empty."""
        shutil.rmtree(self.path, ignore_errors=True)
        with suppress(OSError):
            for folder in above:
                folder.rmdir()

    def read_status(self) -> Status:
        """Read the status of the run; without a status file the run is queued. Raises `RunError` for a damaged file."""
        return read_whole(self.status, _status) or Status()

    def has_ended(self, earlier: AttemptMark) -> bool:
        """Return whether an attempt after the `earlier` one has finished, or was stopped with a save."""
        status = self.read_status()
        return status.state in {"stopped", "finished"} and status.mark != earlier

    def write_status(self, status: Status) -> None:
        """Replace the status in one step, so that a reader never sees half of it."""
        write_atomically(self.status, to_json(status.model_copy(update={"format_version": FORMAT_VERSION})))

    def read_micro_batch_size(self) -> int | None:
        """Return the micro-batch size that the run has found to fit into memory, None if it has not searched yet."""
        return read_whole(self.micro_batch, lambda text: int(json.loads(text)["micro_batch_size"]))

    def write_micro_batch_size(self, size: int) -> None:
        """Save the micro-batch size that fits into memory, so that later attempts use the same."""
        write_atomically(self.micro_batch, json.dumps({"micro_batch_size": size}))

    def read_job(self) -> Job | None:
        """Return the SLURM job of the run, None for a run that never had one."""
        return read_whole(self.job, lambda text: None if is_local(text) else Job.model_validate(json.loads(text)))

    def read_local_job(self) -> LocalJob | None:
        """Return the job of the run in the queue of this machine; None for a run that was never there."""
        return read_whole(self.job, lambda text: LocalJob.model_validate_json(text) if is_local(text) else None)

    @contextmanager
    def changed_job(self) -> Iterator[LocalJob]:
        """Yield the job in the queue, and save it after the block; two processes that change it take turns."""
        with locks.hold(self.job_lock, patience_s=_JOB_PATIENCE_S):
            job = self.read_local_job()
            if job is None:
                raise RunError(f"run {self.path.name} is not in the queue of this machine")
            yield job
            self.write_job(job)

    def write_job(self, job: Job | LocalJob) -> None:
        """Save which job trains the run."""
        write_atomically(self.job, to_json(job))

    def read_metrics(self) -> list[dict[str, Any]]:
        """Return the records of metrics, without lines that were truncated by a crash or damaged on disk."""
        try:
            lines = read_regular(self.metrics, errors="replace", max_bytes=None).split("\n")[:-1]
        except (FileNotFoundError, NotRegularError):
            return []
        return read_readable((line for line in lines if line.endswith("}")), _record)

    def read_newest_metrics(self) -> dict[str, Any]:
        """Return the newest value of each metric among the last records; empty where there are none."""
        try:
            with open_regular(self.metrics) as file:
                start = max(0, file.seek(0, os.SEEK_END) - NEWEST_BYTES)
                file.seek(start)
                lines = file.read().decode(errors="replace").split("\n")[1 if start else 0 : -1]
        except (OSError, NotRegularError):
            return {}
        return {name: value for record in read_readable(lines, _record) for name, value in record.items()}

    def write_error(self, report: dict[str, Any]) -> None:
        """Write the error report of a rank: its `rank`, the `time`, and what `cli.output.print_failure` prints."""
        write_atomically(self.error(report["rank"]), json.dumps(report, indent=1))

    def write_heartbeat(self, heartbeat: Heartbeat) -> None:
        """Replace a rank's heartbeat."""
        write_atomically(self.heartbeat(heartbeat.rank), heartbeat.model_dump_json(indent=1))

    def read_heartbeats(self) -> list[Heartbeat]:
        """Return the last heartbeat of each rank that has written one, ordered by rank."""
        found = read_readable(texts_of(self.heartbeats.glob("rank-*.json")), Heartbeat.model_validate_json)
        return sorted(found, key=lambda heartbeat: heartbeat.rank)

    @contextmanager
    def hold_trainer_lock(self, patience_s: float = 0.0) -> Iterator[str | None]:
        """Hold the lock for training in the run; raises `RunError` where another process holds it for `patience_s`.

        Yields None, or a note for the user about the lock (`distrain.system.locks`).
        """
        with self._hold(self.lock, patience_s) as note:
            yield note

    @contextmanager
    def hold_launcher_lock(self) -> Iterator[str | None]:
        """Hold the lock for launching the run; yields and raises what `hold_trainer_lock` does, without patience."""
        with self._hold(self.launcher_lock, patience_s=0.0) as note:
            yield note

    @property
    def is_held(self) -> bool:
        """Whether a process on a node that shares locks with this one launches the run or trains in it."""
        return any(locks.is_held(path) for path in (self.launcher_lock, self.lock))

    @contextmanager
    def _hold(self, path: Path, patience_s: float) -> Iterator[str | None]:
        try:
            with locks.hold(path, patience_s=patience_s) as note:
                yield note
        except locks.HeldError as error:
            raise RunError(
                f"run directory {self.path} is in use by {error}; wait for it to end, or name another one with --run"
            ) from None

    @contextmanager
    def reserved_disk_space(self) -> Iterator[None]:
        """Reserve a little disk space and free it at the end, so that a run that fills the disk can still write why."""
        with suppress(OSError):  # a disk that is full already
            self.reserve.write_bytes(bytes(RESERVE_BYTES))
        try:
            yield
        finally:
            with suppress(OSError):
                self.reserve.unlink(missing_ok=True)


def new_run_directory(name: str, root: Path) -> RunDirectory:
    """Return the folder of a new run below `root`: recipe name, start time, and four hex digits against collisions."""
    return RunDirectory(root / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}")


def _status(text: str) -> Status:
    return Status.model_validate({"format_version": 0, **json.loads(text)})


def _record(line: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(line)
    return {**restore_nan(record), "step": record["step"]}
