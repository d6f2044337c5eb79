"""Runs trials as ordinary runs: in the queue of this machine, or by SLURM."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from distrain.config.profile import LaunchOptions
from distrain.errors import RunError
from distrain.launchers.slurm import submit as slurm_jobs
from distrain.runs import query, slurm
from distrain.runs.directory import RunDirectory
from distrain.runs.error_reports import read_errors
from distrain.runs.liveness import is_alive, read_states
from distrain.runs.pause import Pause
from distrain.service import queue
from distrain.service.sweeps.folder import SweepFolder
from distrain.service.sweeps.own_scheduler import OwnScheduler
from distrain.service.table import read_entry

RunState = Literal["none", "queued", "running", "stopped", "finished", "failed"]
_ON_CLUSTER: Mapping[str, RunState] = {
    "queued": "queued",
    "requeued": "queued",
    "preempted": "queued",
    "starting": "running",
    "running": "running",
    "stopping": "running",
    "finished": "finished",
    "stopped": "stopped",
    "cancelled": "stopped",
    "never started": "none",
}


class TrialRuns(Protocol):
    """Where the runs of trials are queued."""

    def create(self, run: RunDirectory, overrides: Sequence[str], pause: Pause | None) -> None:
        """Create the run of a trial and queue it; raises a `UserError` for a combination that is not valid."""
        ...

    def resume(self, run: RunDirectory, pause: Pause | None) -> None:
        """Queue a run that has been stopped, unless its process is still ending."""
        ...

    def read_states(self, runs: Sequence[RunDirectory]) -> list[RunState]:
        """Return the state of each run; `none` for one that does not exist or was never queued."""
        ...

    def stop(self, run: RunDirectory) -> None:
        """Have a run save and end, or take it out of the queue."""
        ...

    def tick(self) -> None:
        """Do what the queue needs now."""
        ...

    def close(self) -> None:
        """End what `tick` does."""
        ...


@dataclass
class LocalRuns:
    """Trials in the queue of this machine."""

    folder: SweepFolder
    options: LaunchOptions
    scheduler: OwnScheduler

    def create(self, run: RunDirectory, overrides: Sequence[str], pause: Pause | None) -> None:
        """Create the run of a trial and queue it."""
        found = queue.resolve(
            references=[str(self.folder.base)],
            tasks=[],
            overrides=list(overrides),
            data=None,
            run=run.path,
            options=queue.QueueOptions(options=self.options, root=run.path.parent),
        )
        queue.submit(found, is_snapshot=False, extras=[], code=_code(self.folder), pause=pause)

    def resume(self, run: RunDirectory, pause: Pause | None) -> None:
        """Queue a run that has been stopped."""
        if not is_alive(run):
            queue.submit_again(run, pause=pause)

    def read_states(self, runs: Sequence[RunDirectory]) -> list[RunState]:
        """Return the state of each run."""
        return [self._read_state(run) for run in runs]

    def _read_state(self, run: RunDirectory) -> RunState:
        entry = read_entry(run) if run.exists else None
        if entry is None:
            return "none"
        if entry.is_held:
            return "running"
        if not entry.is_over:
            return "queued"  # or its process has died: the scheduler queues it again, or says that it has failed
        state = entry.status.state
        return state if state in {"finished", "failed"} else "stopped"

    def stop(self, run: RunDirectory) -> None:
        """Have a run save and end, or take it out of the queue."""
        with suppress(RunError):  # it has just ended
            queue.stop(run)

    def tick(self) -> None:
        """Run the queue where no `serve` does."""
        self.scheduler.tick()

    def close(self) -> None:
        """Let others run the queue."""
        self.scheduler.close()


@dataclass
class SlurmRuns:
    """Trials as jobs of SLURM."""

    folder: SweepFolder
    options: LaunchOptions
    sbatch: tuple[str, ...] = ()

    def create(self, run: RunDirectory, overrides: Sequence[str], pause: Pause | None) -> None:
        """Create the run of a trial and submit it."""
        found = slurm_jobs.resolve(
            references=[str(self.folder.base)],
            tasks=[],
            overrides=list(overrides),
            data=None,
            run=run.path,
            sbatch=slurm_jobs.SbatchOptions(options=self.options, extras=self.sbatch),
        )
        slurm_jobs.submit(found, is_snapshot=False, extras=[], code=_code(self.folder), pause=pause)

    def resume(self, run: RunDirectory, pause: Pause | None) -> None:
        """Submit a run again that has been stopped, once SLURM has ended its job."""
        job = run.read_job()
        info = None if job is None else slurm.read_jobs([job.id]).get(job.id)
        if info is None or info.is_over:
            slurm_jobs.submit_again(run, pause=pause)

    def read_states(self, runs: Sequence[RunDirectory]) -> list[RunState]:
        """Return the state of each run."""
        existing = [run for run in runs if run.exists]
        states = read_states(existing)
        return [_ON_CLUSTER.get(states[run.path], "failed") if run.path in states else "none" for run in runs]

    def stop(self, run: RunDirectory) -> None:
        """Have a run save and end, or cancel its job."""
        with suppress(RunError):
            query.request_stop(run)

    def tick(self) -> None:
        """SLURM does it."""

    def close(self) -> None:
        """SLURM does it."""


def describe_failure(run: RunDirectory) -> str:
    """Return why a run has failed, in a phrase."""
    with suppress(RunError, OSError):
        job = run.read_local_job()
        if job is not None and job.fault:
            return job.fault
        if errors := read_errors(run):
            return f"{errors[0]['type']}: {errors[0]['message']}".splitlines()[0]
    return f"`distrain logs {run.path.name}` may say why"


def _code(folder: SweepFolder) -> Path | None:
    return folder.code if folder.code.is_dir() else None
