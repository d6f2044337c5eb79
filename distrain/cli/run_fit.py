"""Starts a run from the command line: resolve, lease devices, prepare the folder, supervise, report."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress

from rich.console import Console

from distrain.cli import output
from distrain.config import Recipe
from distrain.config.debug_presets import debug_post_mortem
from distrain.config.profile import read_profile
from distrain.errors import ExitCode, LaunchError, StoppedError
from distrain.launchers.abort import end_at_once
from distrain.launchers.events import RunEvents, announce_events
from distrain.launchers.fit_request import FitRequest, ResolvedFit
from distrain.launchers.multinode.coordinator import Coordinator
from distrain.launchers.multinode.group import LocalNode, NodeGroup
from distrain.launchers.multinode.member import Member
from distrain.launchers.prepare import RUNS
from distrain.launchers.resolve import resolve
from distrain.launchers.supervisor import RunOutcome, execute
from distrain.messages import print_error
from distrain.runs.directory import RunDirectory
from distrain.runs.error_reports import ErrorReport
from distrain.runs.log_file import append_to_log
from distrain.runs.resume_hint import print_resume_hint
from distrain.runs.stop_file import StopReason, forget_stop, read_stop_reason
from distrain.runs.stop_requests import stop_on_signal
from distrain.service.devices import DevicesTakenError, lease_devices
from distrain.service.launch import is_from_queue
from distrain.service.start import write_run
from distrain.system.live_line import erase_line
from distrain.system.signals import StopRequest, ignore_signals
from distrain.system.terminal import tolerating_loss
from distrain.worker import run_worker


def start(request: FitRequest) -> ExitCode:
    """Train a new run to its end, or resume one, and report it on the terminal; returns the exit code.

    Raises a `UserError` for an invalid request and a `PreflightError` for missing resources; in both cases nothing was
    written.
    """
    console = Console(highlight=False, soft_wrap=True, record=True)  # its output is also written to the run's log
    fit = resolve(request)
    output.print_changes(console, fit.changes)
    if request.dry_run:
        output.print_plan(console, fit.recipe, fit.plan)
        output.print_extension(console, fit.run, fit.extension)
        return ExitCode.FINISHED
    if fit.is_finished:
        output.print_finished_already(console, fit.run)
        output.print_summary(console, fit.run, fit.run.read_status())
        return ExitCode.FINISHED
    with (
        tolerating_loss(),  # a closed terminal, or output to a full disk, does not end the training
        _stopping_on_signal(fit) as stop,
        lease(fit, console, stop, wait=request.wait) as fit,
        announce_events(fit.run, notify=_notifier(console, fit.run)) as events,
        prepare(fit, console, stop) as is_new,
    ):
        events.send_start()
        outcome = supervise(
            fit, console, stop, events, on_error=debug_post_mortem if request.debug_options.post_mortem else None
        )
        report(fit, console, outcome, is_new=is_new, verbose=request.verbose or request.debug_options.debug)
        events.send_end(outcome, stop)
    return outcome.code


@contextmanager
def lease(fit: ResolvedFit, console: Console, stop: StopRequest, *, wait: bool) -> Iterator[ResolvedFit]:
    """Lease the devices of the run during the block; yields the request with a plan that uses them.

    Raises `LaunchError` where other runs have them, unless it may `wait`, and `RunError` where the run is in use.
    """
    if fit.run.exists and fit.profile.node_rank == 0:
        with fit.run.hold_launcher_lock():  # not after a wait, in which Ctrl-C would stop the run that is in use
            pass
    with (
        _interruptible(fit.run),
        lease_devices(
            fit.profile,
            fit.run.path,
            wait=wait,
            is_over=stop.is_set,
            notify=lambda text: output.print_event(console, text),
        ) as devices,
    ):
        if fit.plan.in_process:
            os.environ.update(devices)  # CUDA has not been started in this process
        yield fit.on(devices)


@contextmanager
def prepare(fit: ResolvedFit, console: Console, stop: StopRequest) -> Iterator[bool]:
    """Write the run directory and hold the launcher's lock during the block; yields whether the run is new.

    Of several nodes, only the first one does so. Leaves nothing behind where the run cannot start.
    """
    run = fit.run
    if fit.profile.node_rank > 0:
        yield False
        return
    with write_run(fit, stop) as (is_new, notes):
        output.print_header(console, fit.recipe, fit.profile, fit.batchings[-1], run)
        for text in notes:
            output.print_event(console, f"note: {text}")
        _log(console, run)
        yield is_new


def supervise(
    fit: ResolvedFit,
    console: Console,
    stop: StopRequest,
    events: RunEvents,
    *,
    on_error: Callable[[BaseException], None] | None,
) -> RunOutcome:
    """Execute the plan, attempt after attempt, and return how the run ended; afterwards signals are ignored.

    `on_error` is called with the exception that ended training in this process.
    """
    notify = _notifier(console, fit.run)
    is_coordinator = fit.profile.node_rank == 0
    group: NodeGroup | None = None
    if fit.spans_nodes:
        member = Coordinator if is_coordinator else Member
        group = member(LocalNode(fit.profile, fit.run, _identify(fit.recipe), fit.replan, notify))
    try:
        outcome = execute(
            fit.plan,
            fit.run,
            fit.profile,
            notify=notify,
            requested=stop,
            group=group,
            run_worker=run_worker,
            on_error=on_error,
            on_stall=lambda message: events.send("stalled", f"has stalled: {message}"),
        )
    except LaunchError:  # the other nodes have not connected
        if is_coordinator:
            _mark_failed(fit.run)
        raise
    finally:
        erase_line(console)  # a killed rank could not erase its live line
    ignore_signals()  # the outcome no longer changes
    return outcome


def report(fit: ResolvedFit, console: Console, outcome: RunOutcome, *, is_new: bool, verbose: bool) -> None:
    """Print how the run ended, and save it where no rank could.

    If bad input ended a new run before its first step, its folder is deleted.
    """
    run, code, errors = fit.run, outcome.code, outcome.errors
    is_coordinator = fit.profile.node_rank == 0  # the only node that writes the run directory
    reason = read_stop_reason(run) if is_coordinator else None
    if is_coordinator:
        with suppress(OSError):
            forget_stop(run)  # a late signal must not stop the next attempt
    if code == ExitCode.FINISHED:
        output.print_summary(console, run, run.read_status())
    elif code == ExitCode.STOPPED:
        if is_coordinator:
            _mark_stopped(run, reason)
        output.print_stopped(console, run, run.read_status())
    elif is_coordinator and code == ExitCode.BAD_INPUT and errors:
        _report_bad_input(console, run, errors[0], is_new=is_new, verbose=verbose)
    else:
        if is_coordinator:
            _mark_failed(run)
        output.print_failure(console, run, errors, verbose=verbose and is_coordinator)
    _log(console, run)


def _stopping_on_signal(fit: ResolvedFit) -> AbstractContextManager[StopRequest]:
    run, cleanup = fit.run, fit.plan.cleanup
    earlier = run.read_status().mark
    return stop_on_signal(run, kill=lambda: end_at_once(run, earlier=earlier, cleanup=cleanup), is_last=True)


@contextmanager
def _interruptible(run: RunDirectory) -> Iterator[None]:
    """End the command where a signal has ended the wait for devices, or where those that the queue chose are taken."""
    try:
        yield
    except StoppedError:
        with suppress(OSError):
            run.stop.unlink(missing_ok=True)
        raise SystemExit(ExitCode.INTERRUPTED) from None
    except DevicesTakenError:
        if is_from_queue():  # which chose these devices when they were free, and chooses again
            raise SystemExit(ExitCode.STOPPED) from None
        raise


def _notifier(console: Console, run: RunDirectory) -> Callable[[str], None]:
    def notify(message: str) -> None:
        erase_line(console)
        output.print_event(console, message)
        _log(console, run)

    return notify


def _log(console: Console, run: RunDirectory) -> None:
    """Append to the run's log what was printed since the last call: the terminal may be gone."""
    append_to_log(run.terminal_log, console.export_text())


def _identify(recipe: Recipe) -> str:
    """Return a digest of the recipe, by which nodes check that they were started for the same training."""
    return hashlib.sha256(json.dumps(recipe.identity, sort_keys=True).encode()).hexdigest()[:16]


def _report_bad_input(console: Console, run: RunDirectory, error: ErrorReport, *, is_new: bool, verbose: bool) -> None:
    if verbose:
        console.print(error["traceback"].rstrip(), markup=False)
    has_trained = run.read_status().step > 0 or any(run.checkpoints.iterdir())
    if is_new and not has_trained and read_profile(run.profile).nodes == 1:
        run.remove([run.path.parent] if run.path.parent == RUNS.absolute() else [])
    more = "; --verbose prints the traceback" if error.get("is_mistake") and not (verbose or run.exists) else ""
    print_error(f"{error['message']}{more}")
    if run.exists:
        print_resume_hint(console, run)


def _mark_stopped(run: RunDirectory, reason: StopReason | None) -> None:
    """Write the status if there was no rank yet to write it, and why the run was stopped.

    A signal is not a request of the user where the queue has started the run: the machine may be shutting down.
    """
    state = reason or ("preempted" if is_from_queue() else "stopped")
    status = run.read_status()
    if status.state != state:
        status.close(state)
        if status.attempts:
            status.attempts[-1].state = state
        run.write_status(status)


def _mark_failed(run: RunDirectory) -> None:
    """Write the status that the ranks can no longer write."""
    status = run.read_status()
    status.close("failed")
    with suppress(OSError):  # for example a full disk: the failure is still printed
        run.write_status(status)
