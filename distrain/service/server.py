"""Runs the queue of this machine: `distrain serve` starts, stops and settles jobs, and holds nothing itself.

All that it knows is in the run directories. Killed at any point and started again, it finds the jobs that run by their
locks, and continues; a launcher that it had just started either locks its run, or finds that it was started again and
gives up (`service/launch.py:check_start`).
"""

import subprocess
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path

from distrain.config.profile import read_profile
from distrain.errors import ExitCode, RunError
from distrain.messages import counted, joined, type_and_first_line
from distrain.runs.checkpoints import newest_step
from distrain.runs.directory import RunDirectory
from distrain.runs.error_reports import read_errors
from distrain.runs.liveness import LIVE_STATES
from distrain.runs.local_job import LocalJob
from distrain.runs.status import State, Status
from distrain.runs.stop_file import StopReason, forget_stop, read_stop_reason, request_stop
from distrain.service.devices import list_devices
from distrain.service.launch import last_sentence, start_job
from distrain.service.queue import bell, find_owner_fault, serve_lock
from distrain.service.scheduler import TIME_LIMIT, Decision, Start
from distrain.service.stalls import StallGuard
from distrain.service.table import Entry, JobTable, decide, read_entry
from distrain.system import locks
from distrain.system.display import duration
from distrain.system.loop_guard import LoopGuard, describe
from distrain.system.signals import StopRequest

_TICK_S = 1.0
_PATIENCE_S = 1.0  # a sweep that runs the queue meanwhile holds the lock for a moment at a time
_POLL_S = 0.1  # between two looks whether something has been submitted
_BACK_OFF_S = 5.0  # after the second death in a row, then twice as long each time
_ENDS = {
    "finished": "has finished",
    "failed": "has failed",
    "stopped": "was stopped; `distrain resume` queues it again",
    "cancelled": "was cancelled",
}


class Service:
    """The queue of the runs in one folder."""

    def __init__(
        self,
        root: Path,
        *,
        slots: int,
        max_devices: int | None = None,
        notify: Callable[[str], None],
    ) -> None:
        self._root = root
        self._slots = slots
        self._max_devices = max_devices
        self._notify = notify
        self._table = JobTable(root)
        self._children: dict[Path, subprocess.Popen[bytes]] = {}  # the launchers that this process has started
        self._active: set[Path] = set()  # the runs that had a process at the last tick
        self._stalls = StallGuard(notify)
        self._refused: dict[Path, str] = {}  # why a run is not started, as it was said

    def run(self, stop: StopRequest, *, beside: AbstractContextManager[None] | None = None) -> None:
        """Serve until `stop`, in the context `beside`; jobs that run continue.

        Raises `RunError` where another process serves the folder.
        """
        try:
            with locks.hold(serve_lock(self._root), patience_s=_PATIENCE_S), beside or nullcontext():
                self._notify(f"serving {self._root}: {self._describe_devices()}")
                guard = LoopGuard("the scheduler", report=lambda loop, error: self._notify(describe(loop, error)))
                while not stop.is_set():
                    with guard:
                        self.tick()
                    self._sleep(stop)
        except locks.HeldError as error:
            link = f"`distrain serve --root {self._root} --link` prints a link to its page"
            raise RunError(f"{error} already serves {self._root}; {link}") from None

    def tick(self) -> None:
        """Settle the jobs whose processes have ended, then start and stop what the scheduler decides."""
        codes = self._reap()
        entries = [entry for entry in self._table.read() if self._may_touch(entry)]
        for path, fault in self._table.faults.items():
            self._refuse(path, fault)
        for entry in entries:
            code = codes.get(entry.run.path)
            if entry.run.path not in self._children and (code is not None or entry.needs_settling):
                self._settle(entry.run, code)
        entries = [now for entry in entries if (now := _read(entry.run)) is not None and not now.is_over]
        self._report_ends({entry.run.path for entry in entries if entry.is_held or entry.run.path in self._children})
        self._stalls.check(entries)
        if not entries:
            return
        decision = self._decide(entries)
        by_name = {entry.name: entry for entry in entries}
        for name, reason in decision.stops.items():
            self._stop(by_name[name], reason)
        for name, start in decision.starts.items():
            self._start(by_name[name], start)

    def _describe_devices(self) -> str:
        gpus = len(list_devices("gpu"))
        return f"{counted(gpus, 'GPU')} and {counted(self._slots, 'CPU slot')}"

    def _decide(self, entries: list[Entry]) -> Decision:
        return decide(
            entries,
            slots=self._slots,
            starting=self._children,
            now=time.time(),
            root=self._root,
            max_devices=self._max_devices,
        )

    def _sleep(self, stop: StopRequest) -> None:
        """Wait for the next tick, or until something is submitted or a launcher ends."""
        rung, deadline = bell(self._root), time.monotonic() + _TICK_S
        while time.monotonic() < deadline and not stop.is_set() and bell(self._root) == rung:
            if any(child.poll() is not None for child in self._children.values()):
                return
            time.sleep(_POLL_S)

    def _reap(self) -> dict[Path, int]:
        """Forget the launchers that have ended; returns their exit codes."""
        codes = {path: code for path, child in self._children.items() if (code := child.poll()) is not None}
        for path in codes:
            del self._children[path]
        return codes

    def _report_ends(self, active: set[Path]) -> None:
        """Say how the jobs have ended that had a process at the last tick and are not in the queue any more."""
        for path in self._active - active:
            entry = _read(RunDirectory(path))
            if entry is None:
                self._notify(f"{path.name} can no longer be read: its folder was deleted, or a file in it is damaged")
            elif entry.is_over:
                self._notify(f"{entry.name} {_ENDS[entry.status.state]}{_describe_fault(entry)}")
        self._active = active

    def _may_touch(self, entry: Entry) -> bool:
        """Whether the run is this user's alone; says once why it is not."""
        fault = None if entry.is_held else find_owner_fault(entry.run)
        if fault is not None:
            self._refuse(entry.run.path, fault)
        return fault is None

    def _refuse(self, run: Path, fault: str) -> None:
        """Say once why a run is not started."""
        if self._refused.get(run) != fault:
            self._notify(f"{run.name} is not started: {fault}")
        self._refused[run] = fault

    def _start(self, entry: Entry, start: Start) -> None:
        run = entry.run
        with run.changed_job() as job:
            job.starts += 1
            job.assigned, job.is_backfilled = list(start.devices), start.is_backfilled
            job.started_at, job.stop_reason = time.time(), ""
        self._active.add(run.path)  # even if it ends before the next tick, how is reported
        forget_stop(run)  # the launcher keeps a request that comes from now on
        try:
            self._children[run.path] = start_job(run, job, read_profile(run.profile))
        except (OSError, RunError) as error:
            with run.changed_job() as job:
                self._fail(run, job, str(error) if isinstance(error, RunError) else type_and_first_line(error))
            return
        self._notify(f"{entry.name} starts on {joined(job.assigned, last='and')}")

    def _stop(self, entry: Entry, reason: str) -> None:
        with entry.run.changed_job() as job:
            job.stop_reason = reason
            if reason != TIME_LIMIT:
                job.preempted_at = time.time()
                job.preemptions += 1
        request_stop(entry.run, "preempted")
        why = f"at its {reason}" if reason == TIME_LIMIT else f"to make room {reason}"
        self._notify(f"{entry.name} is being stopped {why}; it resumes later")

    def _settle(self, run: RunDirectory, code: int | None) -> None:
        """Bring the files of a job that no process works on any more in order; `code` is that of its launcher."""
        with suppress(RunError), run.hold_launcher_lock(), run.changed_job() as job:
            status, reason = run.read_status(), read_stop_reason(run)
            if status.state in LIVE_STATES:
                self._settle_dead(run, job, status, reason, code)
            elif status.state == "preempted" or (status.state == "stopped" and reason == "preempted"):
                self._settle_preempted(run, job, status)
            elif status.state == "queued" and code is not None:
                self._settle_unstarted(run, job, status, code)

    def _settle_dead(
        self, run: RunDirectory, job: LocalJob, status: Status, reason: StopReason | None, code: int | None
    ) -> None:
        """Handle a launcher that was killed, with its machine or alone, or that refused to start."""
        if reason == "cancelled" or reason == "stopped":
            self._end(run, status, reason)
        elif code == ExitCode.BAD_INPUT:
            self._fail(run, job, last_sentence(run))
        else:
            self._count_death(run, job, status)

    def _settle_preempted(self, run: RunDirectory, job: LocalJob, status: Status) -> None:
        """Queue a job again that was stopped for another one, at its time limit, or with the machine."""
        step, had_its_time = newest_step(run.checkpoints), job.stop_reason == TIME_LIMIT
        if not job.requeue:
            self._end(run, status, "stopped")
        elif had_its_time and step <= job.reached_step:
            self._fail(run, job, f"it made no progress in its time limit of {duration(job.time_limit_s or 0.0)}")
        else:
            job.is_first = not had_its_time  # otherwise it waits behind the others
            job.queued_at = time.time() if had_its_time else job.queued_at
            job.deaths, job.reached_step = 0, step
            self._requeue(run, job, status)

    def _settle_unstarted(self, run: RunDirectory, job: LocalJob, status: Status, code: int) -> None:
        if code == ExitCode.BAD_INPUT:
            self._fail(run, job, last_sentence(run))
        elif code in {ExitCode.STOPPED, ExitCode.INTERRUPTED}:  # another run was faster to take its devices
            job.not_before = time.time() + _TICK_S
            self._requeue(run, job, status)
        else:
            self._count_death(run, job, status)

    def _count_death(self, run: RunDirectory, job: LocalJob, status: Status) -> None:
        """Queue a job again whose process died, unless that happens again and again without a newer checkpoint."""
        step = newest_step(run.checkpoints)
        job.deaths = 1 if step > job.reached_step else job.deaths + 1
        job.reached_step = step
        if not job.requeue or job.deaths > read_profile(run.profile).restarts:
            self._fail(run, job, f"it died {counted(job.deaths, 'time')} without a newer checkpoint")
            return
        job.is_first = True
        job.not_before = time.time() + _BACK_OFF_S * 2 ** (job.deaths - 2) if job.deaths > 1 else 0.0
        self._notify(f"{run.path.name} died, and is queued again; it resumes from step {step}")
        self._requeue(run, job, status)

    def _requeue(self, run: RunDirectory, job: LocalJob, status: Status) -> None:
        status.close_attempt("failed")
        status.state = "queued"
        run.write_status(status)
        job.assigned, job.started_at, job.stop_reason = [], None, ""

    def _end(self, run: RunDirectory, status: Status, state: State) -> None:
        status.close(state)
        run.write_status(status)

    def _fail(self, run: RunDirectory, job: LocalJob, fault: str) -> None:
        job.fault, job.assigned = fault, []
        status = run.read_status()
        status.close("failed")
        run.write_status(status)


def _read(run: RunDirectory) -> Entry | None:
    """Read a job; None where it is gone or cannot be read."""
    with suppress(RunError, OSError):
        return read_entry(run)
    return None


def _describe_fault(entry: Entry) -> str:
    """Return why a job has failed, after a colon; empty where that is not known, or for any other end."""
    if entry.status.state != "failed":
        return ""
    errors = read_errors(entry.run)
    fault = entry.job.fault or (f"{errors[0]['type']}: {errors[0]['message']}" if errors else "")
    return f": {fault}" if fault else ""
