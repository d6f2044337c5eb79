"""Starts a run in new processes for Python, follows it to its end, and stops it."""

import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from distrain.api.events import RunEvent, RunWatch
from distrain.api.progress import shown_progress
from distrain.errors import DistrainError, ExitCode, RunError, RunFailedError, UserError
from distrain.launchers.fit_request import FitRequest, ResolvedFit
from distrain.launchers.prepare import RUNS
from distrain.launchers.resolve import resolve
from distrain.runs.directory import RunDirectory
from distrain.runs.error_reports import describe_failure, read_errors
from distrain.runs.liveness import is_alive, is_queued, read_states
from distrain.runs.query import will_continue
from distrain.runs.status import Status
from distrain.service import queue, start
from distrain.service.launch import last_sentence
from distrain.system.signals import StopRequest

OnEvent = Callable[[RunEvent], object]
_POLL_S = 0.1
_ENDED_WELL = {ExitCode.FINISHED, ExitCode.STOPPED}
_FAILED = {"failed", "died", "timed out"}
_STOP_AGAIN_S = 2.0  # after which a stop request that nobody has seen is written again


@dataclass(frozen=True)
class Launched:
    """The launcher that this process has started for a run."""

    run: RunDirectory
    process: "subprocess.Popen[bytes]"
    log_start: int  # where its output begins in the run's `console_log`
    is_new: bool  # whether the run did not exist before
    num_attempts: int  # before this one

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return self.process.poll() is not None

    def is_starting(self, status: Status) -> bool:
        """Whether no rank of its first attempt has written the status yet, which is that of an earlier one."""
        return not self.is_over and len(status.attempts) == self.num_attempts


def start_run(
    request: FitRequest,
    on_event: OnEvent | None,
    *,
    wait: bool,
    progress: bool,
    check: Callable[[ResolvedFit], None] = lambda _: None,
) -> tuple[RunDirectory, Launched | None]:
    """Start the launcher of a request in the background, and follow the run; with `wait` to its end.

    Returns the run and its launcher, None for a run that has finished before. Nothing is written where the request is
    invalid, or where `check` raises. Raises what `follow` does.
    """
    fit = resolve(request)
    check(fit)
    if fit.is_finished:
        if progress:
            print(f"run {fit.run.path.name} has already finished")
        return fit.run, None
    advice = "distrain.fit trains on this machine alone; on SLURM use distrain.submit_run"
    start.check_background(fit, wait=False, advice=advice)
    with start.write_run(fit, StopRequest()) as (is_new, notes):
        log = fit.run.console_log
        log_start = log.stat().st_size if log.exists() else 0
        watch = None if on_event is None else RunWatch(fit.run, on_event)
    for note in notes if progress else ():
        print(f"note: {note}")
    num_attempts = len(fit.run.read_status().attempts)
    launched = Launched(fit.run, start.start_in_background(fit, wait=False), log_start, is_new, num_attempts)
    threading.Thread(target=launched.process.wait, name="distrain-launcher", daemon=True).start()  # leaves no zombie
    if not wait and start.await_launcher(fit.run, launched.process) is not None:
        _check_end(fit.run, launched)
    _follow(fit.run, launched, watch, wait=wait, progress=progress)
    return fit.run, launched


def follow(
    run: RunDirectory, launched: Launched | None, on_event: OnEvent | None, *, wait: bool, progress: bool
) -> None:
    """Call `on_event` with what happens to a run from now on, and with `wait` wait until it has ended.

    An interrupt meanwhile stops the run. Raises `UserError` where bad input has ended it, and `RunFailedError` for any
    other failure.
    """
    watch = None if on_event is None else RunWatch(run, on_event)
    _follow(run, launched, watch, wait=wait, progress=progress)


def request_end(run: RunDirectory, launched: Launched | None) -> None:
    """Request a run to stop, or take it out of its queue; does nothing where it has ended."""
    while launched is not None and not launched.is_over and not run.is_held:
        time.sleep(_POLL_S)  # until the launcher has begun
    if _is_active(run, launched):
        try:
            queue.stop(run)
        except RunError:
            if is_alive(run):  # else it has just ended
                raise


def wait_for_end(run: RunDirectory, launched: Launched | None) -> None:
    """Return once a run that was requested to stop has ended."""
    _poll(run, launched, lambda: None, is_stopping=True)


def _follow(
    run: RunDirectory, launched: Launched | None, watch: RunWatch | None, *, wait: bool, progress: bool
) -> None:
    if not wait:
        if watch is not None:
            watch.start(lambda: not _is_active(run, launched))
        return
    if progress and is_queued(run) and not queue.is_served(run.path.parent):
        print(f"the run waits for `distrain serve --root {run.path.parent}`, which is not running")
    with shown_progress(run, is_shown=progress, log_start=None if launched is None else launched.log_start) as show:

        def look() -> None:
            show()
            if watch is not None:
                watch.poll()

        is_interrupted = False
        try:
            _poll(run, launched, look)
        except KeyboardInterrupt:
            is_interrupted = True
            request_end(run, launched)
            _poll(run, launched, look, is_stopping=True)
        look()
    if is_interrupted:
        status = run.read_status()
        print(f"interrupted: {status.state} at step {status.step} of {status.total_steps}; resume() continues the run")
    _check_end(run, launched)


def _poll(run: RunDirectory, launched: Launched | None, look: Callable[[], None], *, is_stopping: bool = False) -> None:
    """Call `look` until the run has ended; where it is to stop, make sure that the request is not lost."""
    requested_s = time.monotonic()
    while _is_active(run, launched):
        look()
        time.sleep(_POLL_S)
        if is_stopping and time.monotonic() - requested_s > _STOP_AGAIN_S:
            requested_s = time.monotonic()
            if not (run.stop.exists() or run.stop_answered.exists()):
                request_end(run, launched)  # a launcher that was just starting has deleted it as an old one


def _is_active(run: RunDirectory, launched: Launched | None) -> bool:
    return (launched is not None and not launched.is_over) or will_continue(run)


def _check_end(run: RunDirectory, launched: Launched | None) -> None:
    """Raise an exception with the sentence of the command line where the run has failed.

    A new run that bad input has ended before its first step is deleted, as by the command line.
    """
    code = None if launched is None else launched.process.poll()
    status = run.read_status()
    has_failed = read_states([run])[run.path] in _FAILED if code is None else code not in _ENDED_WELL
    if not has_failed:
        return
    errors = read_errors(run)
    failure: DistrainError
    if not errors:
        sentence = last_sentence(run) if launched is not None else "its processes ended without an error report"
        failure = UserError(sentence) if code == ExitCode.BAD_INPUT else RunFailedError(f"{sentence}; log {run.logs}")
    elif errors[0]["exit_code"] == ExitCode.BAD_INPUT:
        failure = UserError(str(errors[0]["message"]))
    else:
        failure = RunFailedError(f"{describe_failure(errors[0])} (log {run.log(errors[0]['rank'])})")
    if errors and (not isinstance(failure, UserError) or errors[0].get("is_mistake")):
        failure.add_note(str(errors[0]["traceback"]).rstrip())
    is_untrained = status.step == 0 and not any(run.checkpoints.iterdir())
    if isinstance(failure, UserError) and launched is not None and launched.is_new and is_untrained:
        run.remove([run.path.parent] if run.path.parent == RUNS.absolute() else [])
    raise failure
