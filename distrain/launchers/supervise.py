"""Owns the execution of a plan: attempt after attempt, until the run is at its end or cannot go on."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from distrain.errors import ExitCode
from distrain.launchers.failures import find_deaths
from distrain.launchers.plan import Plan
from distrain.launchers.profile import Profile
from distrain.launchers.stall import StallWatch
from distrain.process import die_with_parent, hold_signals, kill_below, stop_on_signal
from distrain.rundir import RunDirectory

POLL_S = 0.1
LOOK_S = 1.0  # between two looks at the heartbeats


@dataclass(frozen=True)
class Ending:
    """What the end of a run means, and when its last attempt began: the errors since then are what ended it."""

    code: ExitCode
    since: float  # seconds since the epoch


def execute(plan: Plan, run: RunDirectory, profile: Profile, *, tell: Callable[[str], None]) -> Ending:
    """Run the plan to its end and return what its end means; `tell` says what happens on the way.

    A plan in this process calls the worker here, so that `breakpoint()` stops where the user put it. Others are child
    processes, started anew after a failure: the worker then goes on from the newest good checkpoint. As many failures
    in a row as `profile.restarts` are borne; a newer checkpoint than at the last one begins a new row. A user's mistake
    is not tried again, nor what distrain gave up itself, nor a run that was asked to stop.
    """
    if plan.in_process:
        from distrain.worker import run_worker  # the training plane: imported only where it runs

        if str(plan.cwd) not in sys.path:
            sys.path.insert(0, str(plan.cwd))  # as `python -m` does, for the user's own modules
        started = time.time()
        return Ending(run_worker(run), started)
    failures, reached = 0, run.newest_step()
    with stop_on_signal(run, kill=_interrupt):
        while True:
            started = time.time()
            code = _attempt(plan, run, stall_timeout_s=profile.stall_timeout_s, tell=tell)
            errors = run.read_errors(started)
            if code != ExitCode.FAILED or run.stop.exists() or (errors and errors[0]["is_final"]):
                return Ending(code, started)
            if run.newest_step() > reached:
                failures, reached = 0, run.newest_step()
            failures += 1
            if failures > profile.restarts:
                return Ending(code, started)
            begin = f"from checkpoint step-{reached:08d}" if reached else "from step 0"
            tell(f"{_in_short(run, errors)}; restart {failures} of {profile.restarts}, {begin}")


def _attempt(plan: Plan, run: RunDirectory, *, stall_timeout_s: float, tell: Callable[[str], None]) -> ExitCode:
    """Start the plan's processes and watch them to their end; none of them outlives this call, however it ends.

    They share the terminal's output; what launchers say of themselves on standard error goes to the launcher's log,
    since the ranks' own errors are read from the run directory.
    """
    launcher, started = os.getpid(), time.time()

    def prepare() -> None:
        hold_signals()
        die_with_parent(launcher)

    for old in run.heartbeats.glob("*.json"):
        old.unlink()
    with run.launcher_log.open("ab") as log:
        log_start = log.tell()
        child = subprocess.Popen(
            plan.argv,
            cwd=plan.cwd,
            env={**os.environ, **plan.env},
            stderr=log,
            start_new_session=True,  # the terminal's Ctrl-C comes to this process alone
            preexec_fn=prepare,
        )
    try:
        if _watch(child, StallWatch(run, timeout_s=stall_timeout_s), tell):
            return ExitCode.FAILED
    finally:
        was_running = child.poll() is None
        kill_below(child.pid)
        child.kill()
        child.wait()
        if was_running and plan.cleanup:
            subprocess.run(plan.cleanup, check=False)
    if child.returncode == 0:
        return ExitCode.FINISHED
    status = run.read_status()
    if status.state == "stopped" and (status.attempts[-1].ended or 0) >= started:
        return ExitCode.STOPPED
    find_deaths(run, log_start=log_start, since=started)
    errors = run.read_errors(started)  # launchers flatten exit codes: the first rank's own error decides
    return ExitCode(errors[0]["exit_code"]) if errors else ExitCode.FAILED


def _watch(child: subprocess.Popen[bytes], stalls: StallWatch, tell: Callable[[str], None]) -> bool:
    """Wait for the processes to end; returns True at once where they have stalled."""
    due = time.monotonic()
    while True:
        try:
            child.wait(POLL_S)
        except subprocess.TimeoutExpired:
            pass
        else:
            return False
        if time.monotonic() >= due:
            due = time.monotonic() + LOOK_S
            if (words := stalls.look()) is not None:
                tell(words)
                return True


def _interrupt() -> None:
    raise KeyboardInterrupt


def _in_short(run: RunDirectory, errors: list[dict[str, Any]]) -> str:
    """Return who failed and where, in a few words: the whole of it is told once, if the run ends with it."""
    if not errors:
        return f"the processes ended without leaving an error ({run.launcher_log})"
    first = errors[0]
    return f"rank {first['rank']} failed at step {first['step']} ({first['type']}, {run.error(first['rank'])})"
