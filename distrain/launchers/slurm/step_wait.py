"""Detects that srun waits for resources held by other steps of the job, which srun itself does not report."""

import os
import socket
import time
from collections.abc import Callable

from distrain.runs import slurm
from distrain.runs.directory import RunDirectory

_START_TIMEOUT_S = 5.0  # a step whose resources are free starts in this time
_QUERY_INTERVAL_S = 5.0  # between two queries to SLURM
_REPORT_INTERVAL_S = 60.0  # between two messages


class StepWait:
    """Checks whether the step of the srun of an attempt has started."""

    def __init__(self, run: RunDirectory, *, srun_pid: int, notify: Callable[[str], None]) -> None:
        self.is_stopped = False  # a stop was requested while srun waited, when there is no rank to stop
        self._run = run
        self._srun_pid = srun_pid
        self._notify = notify
        self._has_step = False
        self._is_waiting = False
        self._next_query_s = time.monotonic() + _START_TIMEOUT_S
        self._next_report_s = 0.0

    def check(self) -> str | None:
        """Report from time to time that srun waits; returns a reason to end the attempt if a stop is requested."""
        now = time.monotonic()
        if not self._has_step and now >= self._next_query_s:
            self._next_query_s = now + _QUERY_INTERVAL_S
            self._has_step = bool(self._run.read_heartbeats()) or self._find_step()
            self._is_waiting = not self._has_step
        if not self._is_waiting:
            return None
        if self._run.stop.exists():
            self.is_stopped = True
            return "stopped while srun waited for the job's resources"
        if now >= self._next_report_s:
            self._next_report_s = now + _REPORT_INTERVAL_S
            job_id = os.environ["SLURM_JOB_ID"]
            self._notify(
                f"srun waits for resources of job {job_id}, which other steps hold (`squeue --steps --jobs={job_id}` "
                "lists them); this run starts when they end"
            )
        return None

    def _find_step(self) -> bool:
        host = socket.gethostname().partition(".")[0]
        return bool(slurm.find_steps(os.environ["SLURM_JOB_ID"], host=host, srun_pid=self._srun_pid))
