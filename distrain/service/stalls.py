"""Ends jobs of one process that have stalled, so that they are resumed; a launcher watches those of several."""

import signal
import socket
from collections.abc import Callable, Iterable
from pathlib import Path

from distrain.config.profile import read_profile
from distrain.launchers.watchdog import StallWatchdog
from distrain.service.table import Entry
from distrain.system.process import signal_all


class StallGuard:
    """Watches the heartbeats of the jobs that train in their launcher."""

    def __init__(self, notify: Callable[[str], None]) -> None:
        self._notify = notify
        self._watchdogs: dict[tuple[Path, int], StallWatchdog | None] = {}  # by run and start; None: not watched here

    def check(self, entries: Iterable[Entry]) -> None:
        """Kill each job that makes no progress for the stall timeout of its profile; called once a second."""
        running = {(entry.run.path, entry.job.starts): entry for entry in entries if entry.is_held}
        known = self._watchdogs
        self._watchdogs = {key: known[key] if key in known else _watch(entry) for key, entry in running.items()}
        for key, watchdog in self._watchdogs.items():
            if watchdog is not None and (message := watchdog.check()) is not None:
                run = running[key].run
                self._notify(f"{run.path.name} is killed, to be resumed: {message.splitlines()[0]}")
                here = [beat.pid for beat in run.read_heartbeats() if beat.host == socket.gethostname()]
                signal_all(here, signal.SIGKILL)


def _watch(entry: Entry) -> StallWatchdog | None:
    profile = read_profile(entry.run.profile)
    if profile.launcher != "inprocess":
        return None
    return StallWatchdog(entry.run, timeout_s=profile.stall_timeout_s, device=profile.resolved_device)
