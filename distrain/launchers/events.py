"""Notifies the user's webhooks and commands of what happens to a run: `on_event` in the user's settings."""

import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from distrain.config.metrics import format_metric
from distrain.config.user_settings import Event, EventHandler, read_user_settings
from distrain.errors import DistrainError, ExitCode, LaunchError, RunError
from distrain.launchers.event_delivery import EventDelivery
from distrain.launchers.preflight import MIN_DISK_BYTES
from distrain.launchers.supervisor import RunOutcome
from distrain.messages import byte_size
from distrain.runs.checkpoints import newest_step, read_catalog
from distrain.runs.directory import RunDirectory
from distrain.runs.log_file import append_to_log
from distrain.runs.status import Status
from distrain.system.signals import StopRequest

CLOSE_S = 5.0  # how long the end of a run may wait for deliveries: a preempted job has little time
_DISK_CHECK_S = 30.0


class RunEvents:
    """Sends the events of one run to the handlers; without handlers, it does nothing."""

    def __init__(
        self, run: RunDirectory, handlers: Sequence[EventHandler], *, source: Path, notify: Callable[[str], None]
    ) -> None:
        self._run = run
        self._notify = notify
        self._faults: list[str] = []  # the first failure of each handler
        self._deliveries = [
            EventDelivery(handler, f"on_event entry {number} of {source}", report=self._report)
            for number, handler in enumerate(handlers, start=1)
        ]
        self._has_started = False
        self._is_over = threading.Event()

    def send(self, event: Event, message: str) -> None:
        """Send an event of a run that has started; returns at once. The message continues the name of the run."""
        if not self._has_started:
            return
        if concerned := [delivery for delivery in self._deliveries if event in delivery.handler.events]:
            payload = _describe(self._run, event, message)
            for delivery in concerned:
                delivery.add(payload)

    def send_start(self) -> None:
        """Send that the run starts, or from where it is resumed."""
        self._has_started = True
        step = newest_step(self._run.checkpoints)
        self.send("started", f"resumes at step {step}" if step else "has started")
        if any("disk" in delivery.handler.events for delivery in self._deliveries):
            threading.Thread(target=self._watch_disk, name="distrain-disk", daemon=True).start()

    def send_end(self, outcome: RunOutcome, stop: StopRequest) -> None:
        """Send how the run has ended: a stop by a signal of a scheduler is a preemption."""
        status = _read_status(self._run)
        place = f"at step {status.step} of {status.total_steps}"
        if outcome.code == ExitCode.FINISHED:
            result = "" if status.last is None else f", {format_metric(status.best_by, status.last)}"
            self.send("finished", f"has finished {place}{result}")
        elif outcome.code == ExitCode.STOPPED and stop.scheduler_signal is not None:
            self.send("preempted", f"was stopped by {stop.scheduler_signal.name} {place}, and can be resumed")
        elif status.state == "preempted":
            self.send("preempted", f"was stopped by the queue {place}, which resumes it")
        elif outcome.code == ExitCode.STOPPED:
            self.send("stopped", f"was stopped on request {place}, and can be resumed")
        elif outcome.errors:
            first = outcome.errors[0]
            cause = (str(first["message"]).splitlines() or [""])[0]
            self.send("failed", f"has failed at step {first['step']} on rank {first['rank']}: {first['type']}: {cause}")
        else:
            self.send("failed", f"has failed {place}: the processes ended without an error report")

    def close(self) -> None:
        """Wait a few seconds for what was not delivered yet, and say what could not be."""
        self._is_over.set()
        deadline_s = time.monotonic() + CLOSE_S
        for delivery in self._deliveries:
            delivery.end(deadline_s)
        for delivery in self._deliveries:
            delivery.close()
        for fault in self._faults:
            self._notify(f"note: {fault}")

    def _report(self, fault: str) -> None:
        self._faults.append(fault)
        append_to_log(self._run.launcher_log, fault)

    def _watch_disk(self) -> None:
        """Send an event when the disk has no space for two more checkpoints, and again when that recurs."""
        was_full = False
        while not self._is_over.is_set():
            with suppress(OSError, RunError):
                free, needed = shutil.disk_usage(self._run.path).free, self._needed_bytes()
                if free < needed and not was_full:
                    self.send("disk", f"is running out of disk space: {byte_size(free)} are free")
                was_full = free < needed or (was_full and free < 2 * needed)
            self._is_over.wait(_DISK_CHECK_S)

    def _needed_bytes(self) -> int:
        entries = read_catalog(self._run.checkpoints)
        return max(MIN_DISK_BYTES, 2 * entries[-1].num_bytes if entries else 0)


@contextmanager
def announce_events(run: RunDirectory, *, notify: Callable[[str], None]) -> Iterator[RunEvents]:
    """Yield what sends the events of a run, on node 0; `notify` is called at the end with what was not delivered.

    Settings that are invalid are reported, and then nobody is notified: they never keep a run from training.
    """
    handlers: Sequence[EventHandler] = ()
    source = settings_path(os.environ)
    if run.node_rank == 0:
        try:
            handlers = read_user_settings(source).on_event
        except LaunchError as error:
            notify(f"note: nobody is notified of the events of this run: {error}")
    events = RunEvents(run, handlers, source=source, notify=notify)
    try:
        yield events
    except DistrainError as error:
        events.send("failed", f"has failed: {error}")
        raise
    finally:
        events.close()


def settings_path(environment: Mapping[str, str]) -> Path:
    """Return the file with the user's settings, which may not exist."""
    folder = environment.get("XDG_CONFIG_HOME") or f"{environment.get('HOME') or '/'}/.config"
    return Path(folder, "distrain", "config.yaml")


def _describe(run: RunDirectory, event: Event, message: str) -> dict[str, Any]:
    """Return an event as a JSON object; its `text` is a whole sentence, which Slack, for example, shows."""
    status = _read_status(run)
    states: dict[Event, str] = {"started": "starting", "stalled": status.state, "disk": status.state}
    return {
        "event": event,
        "time": time.time(),
        "run": run.path.name,
        "path": str(run.path),
        "host": socket.gethostname(),
        "state": states.get(event, event),  # the status may not have it yet
        "step": status.step,
        "total_steps": status.total_steps,
        "metrics": status.last,
        "best": status.best,
        "message": message,
        "text": f"{run.path.name} {message}",
    }


def _read_status(run: RunDirectory) -> Status:
    with suppress(RunError, OSError):
        return run.read_status()
    return Status()
