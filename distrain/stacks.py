"""Owns the look into a run that goes on: where the Python stack of each rank stands, as its heartbeat tells it."""

import socket
import time
from dataclasses import dataclass

from distrain.launchers.profile import read_profile
from distrain.process import state_of
from distrain.rundir import Heartbeat, RunDirectory

SILENT_AFTER_S = 5.0  # a rank beats once a second, on a busy machine or a slow disk now and then later
ANSWER_S = 4.0  # how long ranks have to answer a request
_POLL_S = 0.05


@dataclass(frozen=True)
class RankStack:
    """What is known of one rank; of one that has never given a sign of life, `heartbeat` and `age_s` are None."""

    rank: int
    heartbeat: Heartbeat | None
    age_s: float | None  # since the heartbeat, by this machine's clock
    process_state: str | None  # the kernel's letter, for a process of this machine

    @property
    def is_silent(self) -> bool:
        """Whether the rank should have told more by now: its stack may be an old one."""
        return self.age_s is None or self.age_s > SILENT_AFTER_S


def read_stacks(run: RunDirectory) -> list[RankStack]:
    """Return where each rank of a run stood at its last heartbeat, by rank."""
    found = {heartbeat.rank: heartbeat for heartbeat in run.read_heartbeats()}
    return [_look_at(rank, found.get(rank)) for rank in range(read_profile(run.profile).world_size)]


def ask_for_all_threads(run: RunDirectory) -> list[RankStack]:
    """Have the ranks tell the stacks of all their threads, and return what came within `ANSWER_S`."""
    deadline = time.monotonic() + ANSWER_S
    run.stacks_request.touch()
    try:
        while True:
            stacks = read_stacks(run)
            awaited = [s for s in stacks if s.heartbeat is not None and not s.heartbeat.threads]
            if not awaited or time.monotonic() > deadline:
                return stacks
            time.sleep(_POLL_S)
    finally:
        run.stacks_request.unlink(missing_ok=True)


def _look_at(rank: int, heartbeat: Heartbeat | None) -> RankStack:
    if heartbeat is None:
        return RankStack(rank, None, None, None)
    state = state_of(heartbeat.pid) if heartbeat.host == socket.gethostname() else None
    return RankStack(rank, heartbeat, max(0.0, time.time() - heartbeat.time), state)
