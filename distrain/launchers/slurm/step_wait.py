"""Notices that srun waits for resources which other steps of the job hold: it says nothing of it itself."""

import os
import socket
import time
from collections.abc import Callable

from distrain.runs import slurm
from distrain.runs.directory import RunDirectory

_SOON_S = 5.0  # a step whose resources are free has begun by then
_ASK_S = 5.0  # between two questions to SLURM
_TELL_S = 60.0  # between two words on it


class StepWait:
    """Looks whether the srun that an attempt has started has got its step."""

    def __init__(self, run: RunDirectory, *, srun_pid: int, tell: Callable[[str], None]) -> None:
        self.is_stopped = False  # a stop was requested while srun waited: no rank is there to hear it
        self._run = run
        self._srun_pid = srun_pid
        self._tell = tell
        self._has_step = False
        self._is_waiting = False
        self._ask_s = time.monotonic() + _SOON_S
        self._tell_s = 0.0

    def look(self) -> str | None:
        """Tell now and then that srun waits; returns why the attempt ends here where a stop is requested meanwhile."""
        now = time.monotonic()
        if not self._has_step and now >= self._ask_s:
            self._ask_s = now + _ASK_S
            self._has_step = bool(self._run.read_heartbeats()) or self._find_step()
            self._is_waiting = not self._has_step
        if not self._is_waiting:
            return None
        if self._run.stop.exists():
            self.is_stopped = True
            return "stopped while srun waited for the job's resources"
        if now >= self._tell_s:
            self._tell_s = now + _TELL_S
            job_id = os.environ["SLURM_JOB_ID"]
            self._tell(
                f"srun waits for resources of job {job_id}, which other steps hold (`squeue --steps --jobs={job_id}` "
                "lists them); this run begins when they end"
            )
        return None

    def _find_step(self) -> bool:
        host = socket.gethostname().partition(".")[0]
        return bool(slurm.find_steps(os.environ["SLURM_JOB_ID"], host=host, srun_pid=self._srun_pid))
