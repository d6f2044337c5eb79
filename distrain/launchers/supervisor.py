"""Executes a plan: attempt after attempt, until the run is at its end or cannot continue."""

import socket
import subprocess
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
from distrain.runs.directory import RunDirectory, write_atomically
from distrain.runs.error_reports import Clocks, ErrorReport, begin_attempt, read_errors
from distrain.runs.status import AttemptMark
from distrain.runs.stop_requests import stop_on_signal
from distrain.runs.task import saves_nothing
from distrain.system.loop_guard import LoopGuard, describe
from distrain.system.nvml import wait_for_release
from distrain.system.process import kill_below, pause_together
from distrain.system.signals import StopRequest

RunWorker = Callable[..., ExitCode]  # `distrain.worker.run_worker`, which a plan in this process calls
POLL_S = 0.1
LOOK_S = 1.0  # between two looks at the heartbeats
_NOTHING_TO_SAVE_S = 1.0  # how long an evaluation or a benchmark may take to end by itself after a stop request
_SHARED_FOLDER_S = 5.0  # how long a network file system may show an old status


@dataclass(frozen=True)
class Ending:
    """What the end of a run means, and the errors that ended its last attempt, the cause first."""

    code: ExitCode
    errors: list[ErrorReport]


def execute(
    plan: Plan,
    run: RunDirectory,
    profile: Profile,
    *,
    tell: Callable[[str], None],
    requested: StopRequest | None = None,
    group: NodeGroup | None = None,
    run_worker: RunWorker | None = None,
    on_error: Callable[[BaseException], None] | None = None,
) -> Ending:
    """Run the plan to its end and return what its end means; `tell` says what happens on the way.

    A plan in this process calls `run_worker` here, so that `breakpoint()` stops where the user put it, and `on_error`,
    with what ended the training, where the objects of the training are at hand. Others are child
    processes, started again after a failure: the worker then goes on from the newest good checkpoint. As many failures
    in a row as `profile.restarts` are borne; a newer checkpoint than at the last one begins a new row. A user's mistake
    is not tried again, nor what distrain gave up itself, nor a run that was asked to stop. With `group`, all machines
    begin and end each attempt together, and the first one decides.

    `requested` is set by the caller's handler for signals that ask for a stop; without it there is one here, and a
    second Ctrl-C raises `SystemExit`, or ends a process that trains at once.
    """
    if requested is None:
        kill = end_with_children if plan.in_process else _interrupt
        with stop_on_signal(run, kill=kill, interrupts_work=plan.in_process and saves_nothing(run)) as requested:
            return execute(
                plan,
                run,
                profile,
                tell=tell,
                requested=requested,
                group=group,
                run_worker=run_worker,
                on_error=on_error,
            )
    if plan.in_process:
        assert run_worker is not None, "a plan in this process needs the worker"
        add_to_sys_path(plan.cwd)
        _forget_earlier(run)
        return Ending(run_worker(run, stop=requested, on_error=on_error), read_errors(run))
    with (
        pause_together(),
        closing(group or SingleNode(plan)) as together,
        closing(ProcessSpawner(run.launcher_log)) as starter,
    ):
        return _execute_together(together, starter, run, profile, was_asked=requested, tell=tell)


def _execute_together(
    group: NodeGroup,
    starter: ProcessSpawner,
    run: RunDirectory,
    profile: Profile,
    *,
    was_asked: StopRequest,
    tell: Callable[[str], None],
) -> Ending:
    """Start attempt after attempt until the node group agrees on the end."""
    failures, reached = 0, newest_step(run.checkpoints)
    while True:
        if group.is_coordinator:
            _forget_earlier(run)  # before any machine begins
        if (plan := group.join(was_asked)) is None:
            group.decide(ExitCode.STOPPED)
            return Ending(ExitCode.STOPPED, [])
        code = _attempt(plan, starter, run, group, profile, was_asked=was_asked, tell=tell)
        errors = read_errors(run)
        end: ExitCode | None = code
        if code == ExitCode.FAILED and not run.stop.exists() and not (errors and errors[0]["is_final"]):
            if newest_step(run.checkpoints) > reached:
                failures, reached = 0, newest_step(run.checkpoints)
            failures += 1
            end = None if failures <= profile.restarts else code
        end = group.decide(end)
        if end is not None:
            return Ending(end, read_errors(run))
        if code == ExitCode.FAILED and group.is_coordinator:
            begin = f"from checkpoint {final_path(run.checkpoints, reached).name}" if reached else "from step 0"
            tell(f"{_in_short(run, errors)}; restart {failures} of {profile.restarts}, {begin}")


def _attempt(
    plan: Plan,
    starter: ProcessSpawner,
    run: RunDirectory,
    group: NodeGroup,
    profile: Profile,
    *,
    was_asked: StopRequest,
    tell: Callable[[str], None],
) -> ExitCode:
    """Start the plan's processes and watch them to their end; none of them outlives this call, however it ends.

    They share the terminal's output; the ranks' own errors are read from the run directory.
    """
    earlier, clocks = run.read_status().mark, Clocks()
    for path, text in plan.files.items():
        write_atomically(path, text)
    log_start = run.launcher_log.stat().st_size if run.launcher_log.exists() else 0
    child = starter.start(plan)
    step_wait = StepWait(run, srun_pid=child.pid, tell=tell)
    looks = [ExitWatch(run, log_start=log_start).look]
    if profile.launcher == "slurm":
        looks.append(step_wait.look)
    unsaved = _StopBeforeSave(run, was_asked)
    if saves_nothing(run):
        looks.append(unsaved.look)
    if group.is_coordinator:
        stalls = StallWatchdog(run, timeout_s=profile.stall_timeout_s, device=profile.resolved_device, clocks=clocks)
        looks.append(stalls.look)
    try:
        was_ended = _watch(child, looks, group, tell)
    finally:
        was_running = child.poll() is None
        killed = kill_below(child.pid)
        child.kill()
        exit_status = child.wait()
        if was_running and plan.cleanup:
            subprocess.run([*plan.cleanup, str(child.pid)], check=False)
        if profile.device == "cuda":
            _await_gpus(killed, run, tell)
    state = _read_state(run, earlier, patience_s=0 if was_ended or exit_status != 0 else _SHARED_FOLDER_S)
    if not was_ended and (state is None or (exit_status != 0 and state != "stopped")):
        gone = {beat.pid for beat in run.read_heartbeats()} if exit_status == 0 else None
        report_killed_ranks(run, log_start=log_start, gone=gone)
    group.leave()  # from here on the other machines' reports are there as well
    if group.is_coordinator:
        clocks.write(run)
    if state == "stopped" or step_wait.is_stopped or unsaved.is_stopped:
        return ExitCode.STOPPED
    if was_ended:
        return ExitCode.FAILED
    if exit_status == 0 and state == "finished":
        return ExitCode.FINISHED
    errors = read_errors(run)  # launchers flatten exit codes: the first rank's own error decides
    return ExitCode(errors[0]["exit_code"]) if errors else ExitCode.FAILED


def _await_gpus(killed: set[int], run: RunDirectory, tell: Callable[[str], None]) -> None:
    """Wait until the ranks of this machine have given their GPUs back: the next attempt would run out of memory."""
    ranks = {beat.pid for beat in run.read_heartbeats() if beat.host == socket.gethostname()}
    if held := wait_for_release(killed | ranks):
        pids = ", ".join(map(str, sorted(held)))
        tell(f"the driver has not freed the GPU memory of process {pids}, which has ended; nvidia-smi says more")


def _read_state(run: RunDirectory, earlier: AttemptMark, *, patience_s: float) -> Literal["finished", "stopped"] | None:
    """Return how an attempt after the `earlier` one has ended by its own word; None where it has none.

    A network file system may show that word late. What examines or measures leaves its results instead of one.
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
    """Ends ranks that have nothing to save soon after a stop request, also in the middle of a batch that takes long."""

    def __init__(self, run: RunDirectory, was_asked: StopRequest) -> None:
        self.is_stopped = False
        self._run = run
        self._was_asked = was_asked
        self._asked_s: float | None = None

    def look(self) -> str | None:
        """Return why the attempt ends here, once its ranks have had the time to end by themselves."""
        if not (self._was_asked.is_set() or self._run.stop.exists()):
            return None
        now = time.monotonic()
        self._asked_s = self._asked_s or now
        self.is_stopped = now - self._asked_s >= _NOTHING_TO_SAVE_S
        return "stopped in the middle of a batch" if self.is_stopped else None


def _forget_earlier(run: RunDirectory) -> None:
    """Take away what ranks of an earlier attempt said last, and tell their errors from those to come."""
    begin_attempt(run)
    for old in run.heartbeats.glob("*.json"):
        with suppress(OSError):
            old.unlink(missing_ok=True)


def _watch(
    child: ProcessHandle, looks: list[Callable[[], str | None]], group: NodeGroup, tell: Callable[[str], None]
) -> bool:
    """Wait for the processes to end; returns True at once if the node group breaks up or one of the looks says why."""
    guard = LoopGuard("the launcher's watch over the ranks", report=lambda loop, error: tell(describe(loop, error)))
    next_s = time.monotonic()
    while True:
        try:
            child.wait(POLL_S)
        except subprocess.TimeoutExpired:
            pass
        else:
            return False
        with guard:
            if (words := group.poll()) is not None:
                tell(words)
                return True
        if time.monotonic() >= next_s:
            next_s = time.monotonic() + LOOK_S
            for look in looks:
                with guard:
                    if (words := look()) is not None:
                        tell(words)
                        return True


def _interrupt() -> None:
    raise SystemExit(ExitCode.INTERRUPTED)


def _in_short(run: RunDirectory, errors: list[ErrorReport]) -> str:
    """Return who failed and where, in a few words: the whole of it is told once, if the run ends with it."""
    if not errors:
        return f"the processes ended without leaving an error ({run.launcher_log})"
    first = errors[0]
    return f"rank {first['rank']} failed at step {first['step']} ({first['type']}, {run.error(first['rank'])})"
