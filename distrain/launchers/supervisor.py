"""Executes a plan, attempt after attempt, until the run has ended or cannot continue."""

import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Literal

from distrain.config.profile import Profile
from distrain.config.user_code import add_to_sys_path
from distrain.errors import ExitCode
from distrain.launchers.abort import end_with_children
from distrain.launchers.exit_reports import ExitWatch, report_killed_ranks
from distrain.launchers.multinode.group import NodeGroup, SingleNode
from distrain.launchers.plan import Plan
from distrain.launchers.slurm.step_wait import StepWait
from distrain.launchers.spawn import ProcessHandle, ProcessSpawner
from distrain.launchers.watchdog import StallWatchdog
from distrain.runs.checkpoints import final_path, newest_step
from distrain.runs.directory import RunDirectory
from distrain.runs.error_reports import Clocks, ErrorReport, begin_attempt, read_errors
from distrain.runs.status import AttemptMark
from distrain.runs.stop_requests import stop_on_signal
from distrain.runs.task import saves_nothing
from distrain.system.files import write_atomically
from distrain.system.loop_guard import LoopGuard, describe
from distrain.system.nvml import wait_for_release
from distrain.system.process import kill_below, pause_together
from distrain.system.signals import StopRequest

RunWorker = Callable[..., ExitCode]  # `distrain.worker.run_worker`, called for a plan in this process
POLL_S = 0.1
CHECK_S = 1.0  # between two checks of the heartbeats
_STOP_WITHOUT_SAVE_S = 1.0  # how long an evaluation or a benchmark may take to end by itself after a stop request
_SHARED_FOLDER_S = 5.0  # how long a network file system may show an old status


@dataclass(frozen=True)
class RunOutcome:
    """How a run ended: its exit code, and the errors of its last attempt, the cause first."""

    code: ExitCode
    errors: list[ErrorReport]


def execute(
    plan: Plan,
    run: RunDirectory,
    profile: Profile,
    *,
    notify: Callable[[str], None],
    requested: StopRequest | None = None,
    group: NodeGroup | None = None,
    run_worker: RunWorker | None = None,
    on_error: Callable[[BaseException], None] | None = None,
    on_stall: Callable[[str], None] = lambda _: None,
) -> RunOutcome:
    """Run the plan to its end and return the outcome; `notify` is called with messages for the user meanwhile.

    So is `on_stall`, with a sentence on each stall.

    A plan in this process calls `run_worker` here, so that `breakpoint()` works, and on an exception `on_error`, while
    the objects of the training still exist. Other plans run in child processes, which are started again after a
    failure; the worker then resumes from the newest valid checkpoint. Up to `profile.restarts` failures in a row are
    allowed; a new checkpoint resets the count. A mistake of the user, an error raised by distrain itself, and a run
    that was requested to stop are not retried. With `group`, all nodes begin and end each attempt together, and the
    coordinator decides.

    `requested` is set by the caller's signal handler; without it, a handler is installed here, and a second Ctrl-C
    raises `SystemExit`, or kills a process that trains at once.
    """
    if requested is None:
        kill = end_with_children if plan.in_process else _interrupt
        with stop_on_signal(run, kill=kill, interrupts_work=plan.in_process and saves_nothing(run)) as requested:
            return execute(
                plan,
                run,
                profile,
                notify=notify,
                requested=requested,
                group=group,
                run_worker=run_worker,
                on_error=on_error,
                on_stall=on_stall,
            )
    if plan.in_process:
        assert run_worker is not None, "a plan in this process needs the worker"
        _find_modules(run, plan)
        _forget_earlier(run)
        return RunOutcome(run_worker(run, stop=requested, on_error=on_error), read_errors(run))
    with (
        pause_together(),
        closing(group or SingleNode(plan)) as together,
        closing(ProcessSpawner(run.launcher_log)) as spawner,
    ):
        return _execute_together(together, spawner, run, profile, stop=requested, notify=notify, on_stall=on_stall)


def _execute_together(
    group: NodeGroup,
    spawner: ProcessSpawner,
    run: RunDirectory,
    profile: Profile,
    *,
    stop: StopRequest,
    notify: Callable[[str], None],
    on_stall: Callable[[str], None],
) -> RunOutcome:
    """Start attempt after attempt until the node group agrees on the end."""
    failures, reached = 0, newest_step(run.checkpoints)
    while True:
        if group.is_coordinator:
            _forget_earlier(run)  # before any node begins
        if (plan := group.join(stop)) is None:
            group.decide(ExitCode.STOPPED)
            return RunOutcome(ExitCode.STOPPED, [])
        code = _attempt(plan, spawner, run, group, profile, stop=stop, notify=notify, on_stall=on_stall)
        errors = read_errors(run)
        end: ExitCode | None = code
        if code == ExitCode.FAILED and not run.stop.exists() and not (errors and errors[0]["is_final"]):
            if newest_step(run.checkpoints) > reached:
                failures, reached = 0, newest_step(run.checkpoints)
            failures += 1
            end = None if failures <= profile.restarts else code
        end = group.decide(end)
        if end is not None:
            return RunOutcome(end, read_errors(run))
        if code == ExitCode.FAILED and group.is_coordinator:
            begin = f"from checkpoint {final_path(run.checkpoints, reached).name}" if reached else "from step 0"
            notify(f"{_in_short(run, errors)}; restart {failures} of {profile.restarts}, {begin}")


def _attempt(
    plan: Plan,
    spawner: ProcessSpawner,
    run: RunDirectory,
    group: NodeGroup,
    profile: Profile,
    *,
    stop: StopRequest,
    notify: Callable[[str], None],
    on_stall: Callable[[str], None],
) -> ExitCode:
    """Start the plan's processes and watch them to their end; none of them survives this call, however it ends.

    They share the terminal; the errors of the ranks are read from the run directory.
    """
    earlier, clocks = run.read_status().mark, Clocks()
    for path, text in plan.files.items():
        write_atomically(path, text)
    log_start = run.launcher_log.stat().st_size if run.launcher_log.exists() else 0
    child = spawner.start(plan)
    step_wait = StepWait(run, srun_pid=child.pid, notify=notify)
    checks = [ExitWatch(run, log_start=log_start).check]
    if profile.launcher == "slurm":
        checks.append(step_wait.check)
    unsaved = _StopBeforeSave(run, stop)
    if saves_nothing(run):
        checks.append(unsaved.check)
    if group.is_coordinator:
        timeout_s, device = profile.stall_timeout_s, profile.resolved_device
        stalls = StallWatchdog(run, timeout_s=timeout_s, device=device, clocks=clocks, on_stall=on_stall)
        checks.append(stalls.check)
    try:
        was_ended = _watch(child, checks, group, notify)
    finally:
        was_running = child.poll() is None
        killed = kill_below(child.pid)
        child.kill()
        exit_status = child.wait()
        if was_running and plan.cleanup:
            subprocess.run([*plan.cleanup, str(child.pid)], check=False)
        if profile.device == "cuda":
            _await_gpus(killed, run, notify)
    state = _read_state(run, earlier, patience_s=0 if was_ended or exit_status != 0 else _SHARED_FOLDER_S)
    if not was_ended and (state is None or (exit_status != 0 and state != "stopped")):
        gone = {beat.pid for beat in run.read_heartbeats()} if exit_status == 0 else None
        report_killed_ranks(run, log_start=log_start, gone=gone)
    group.leave()  # afterwards the reports of the other nodes have been written as well
    if group.is_coordinator:
        clocks.write(run)
    if state == "stopped" or step_wait.is_stopped or unsaved.is_stopped:
        return ExitCode.STOPPED
    if was_ended:
        return ExitCode.FAILED
    if exit_status == 0 and state == "finished":
        return ExitCode.FINISHED
    errors = read_errors(run)  # launchers do not keep exit codes: the report of the first failed rank decides
    return ExitCode(errors[0]["exit_code"]) if errors else ExitCode.FAILED


def _await_gpus(killed: set[int], run: RunDirectory, notify: Callable[[str], None]) -> None:
    """Wait until the GPU memory of this node's ranks is free: otherwise the next attempt would run out of memory."""
    ranks = {beat.pid for beat in run.read_heartbeats() if beat.host == socket.gethostname()}
    if remaining := wait_for_release(killed | ranks):
        pids = ", ".join(map(str, sorted(remaining)))
        notify(f"the driver has not freed the GPU memory of process {pids}, which has ended; see nvidia-smi")


def _read_state(run: RunDirectory, earlier: AttemptMark, *, patience_s: float) -> Literal["finished", "stopped"] | None:
    """Return the final state that an attempt after the `earlier` one has written; None where it has not written one.

    A network file system may show it late. An evaluation or a benchmark writes its results instead.
    """
    if patience_s and saves_nothing(run):
        return "finished"
    deadline = time.monotonic() + patience_s
    while True:
        status = run.read_status()
        if status.mark != earlier and (status.state == "finished" or status.state == "stopped"):
            return status.state
        if time.monotonic() >= deadline:
            return None
        time.sleep(POLL_S)


class _StopBeforeSave:
    """Ends ranks that have nothing to save soon after a stop request, even in the middle of a long batch."""

    def __init__(self, run: RunDirectory, stop: StopRequest) -> None:
        self.is_stopped = False
        self._run = run
        self._stop = stop
        self._requested_s: float | None = None

    def check(self) -> str | None:
        """Return why the attempt ends, once its ranks have had time to end by themselves."""
        if not (self._stop.is_set() or self._run.stop.exists()):
            return None
        now = time.monotonic()
        self._requested_s = self._requested_s or now
        self.is_stopped = now - self._requested_s >= _STOP_WITHOUT_SAVE_S
        return "stopped in the middle of a batch" if self.is_stopped else None


def _find_modules(run: RunDirectory, plan: Plan) -> None:
    """Import the user's modules from the code of a submitted run, and then from the folder where this one was started.

    Not from the folder where the queue has started it (PYTHONSAFEPATH): what runs is what was submitted.
    """
    submitted = [run.code] if run.code.is_dir() else []
    add_to_sys_path(*submitted, *([] if submitted and sys.flags.safe_path else [plan.cwd]))


def _forget_earlier(run: RunDirectory) -> None:
    """Delete the heartbeats of an earlier attempt, and mark its error reports as old."""
    begin_attempt(run)
    for old in run.heartbeats.glob("*.json"):
        with suppress(OSError):
            old.unlink(missing_ok=True)


def _watch(
    child: ProcessHandle, checks: list[Callable[[], str | None]], group: NodeGroup, notify: Callable[[str], None]
) -> bool:
    """Wait for the processes to end; returns True as soon as the node group or a check reports why they must end."""
    guard = LoopGuard("the launcher's check of the ranks", report=lambda loop, error: notify(describe(loop, error)))
    next_s = time.monotonic()
    while True:
        try:
            child.wait(POLL_S)
        except subprocess.TimeoutExpired:
            pass
        else:
            return False
        with guard:
            if (message := group.poll()) is not None:
                notify(message)
                return True
        if time.monotonic() >= next_s:
            next_s = time.monotonic() + CHECK_S
            for check in checks:
                with guard:
                    if (message := check()) is not None:
                        notify(message)
                        return True


def _interrupt() -> None:
    raise SystemExit(ExitCode.INTERRUPTED)


def _in_short(run: RunDirectory, errors: list[ErrorReport]) -> str:
    """Return which rank failed and where, in short: the details are printed once, if the run ends with the error."""
    if not errors:
        return f"the processes ended without an error report ({run.launcher_log})"
    first = errors[0]
    return f"rank {first['rank']} failed at step {first['step']} ({first['type']}, {run.error(first['rank'])})"
