"""Starts a run from the command line: resolve, lease devices, prepare the folder, supervise, report."""

import hashlib
import json
import os
import shlex
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress

from rich.console import Console

from distrain.cli import output
from distrain.cli.fit_request import FitRequest, ResolvedFit
from distrain.config import Recipe
from distrain.config.batching import Batching, solve_batching
from distrain.config.debug_presets import debug_post_mortem
from distrain.config.profile import LaunchOptions, Profile, read_profile, resolve_profile
from distrain.errors import ExitCode, LaunchError, PreflightError, StoppedError
from distrain.launchers import LAUNCHERS
from distrain.launchers.abort import end_at_once
from distrain.launchers.events import RunEvents, announce_events
from distrain.launchers.multinode.coordinator import Coordinator
from distrain.launchers.multinode.group import LocalNode, NodeGroup
from distrain.launchers.multinode.member import Member
from distrain.launchers.preflight import collect_errors, find_rendezvous_fault, find_shortages
from distrain.launchers.prepare import RUNS, check_data, check_schedule, resolve_run, write_request
from distrain.launchers.profile_files import read_launch_options
from distrain.launchers.slurm import srun
from distrain.launchers.supervisor import RunOutcome, execute
from distrain.messages import print_error
from distrain.runs.directory import RunDirectory
from distrain.runs.error_reports import ErrorReport
from distrain.runs.log_file import append_to_log
from distrain.runs.pause import write_pause
from distrain.runs.resume_hint import print_resume_hint
from distrain.runs.stop_file import StopReason, forget_stop, read_stop_reason
from distrain.runs.stop_requests import stop_on_signal
from distrain.service.devices import DevicesTakenError, lease_devices
from distrain.service.launch import check_start, is_from_queue
from distrain.system.live_line import erase_line
from distrain.system.network import split_endpoint
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


def resolve(request: FitRequest) -> ResolvedFit:
    """Resolve the request on this machine; reads and checks files, and writes nothing.

    Raises a `UserError` for an invalid request and a `PreflightError` for missing resources.
    """
    options = read_launch_options(request.launch, request.options)
    if options.node_rank is None or options.launcher == "slurm":  # else each srun task is one of several nodes
        srun.check_started_once(os.environ, command="fit")
    run, recipe, changes = resolve_run(
        request.reference, list(request.overrides), request.data, request.run, request.debug_options
    )
    is_finished = run.exists and run.read_status().state == "finished"
    starts = not (request.dry_run or is_finished)
    if starts:
        run.check_writable(otherwise=_elsewhere(run))
    profile, batchings, notes = _check(request, run, recipe, options, preflight=request.preflight and starts)
    fit = ResolvedFit(
        run=RunDirectory(run.path, node_rank=profile.node_rank),
        recipe=recipe,
        changes=changes,
        profile=profile,
        batchings=batchings,
        plan=LAUNCHERS[profile.launcher](profile, run.path),
        notes=notes,
        is_finished=is_finished,
    )
    if starts and fit.spans_nodes and request.run is None:
        raise LaunchError("several nodes need one run directory, on a shared file system; name it with --run DIR")
    return fit


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
    with ExitStack() as locked:
        is_new = not run.exists
        with run.created():
            note = locked.enter_context(run.hold_launcher_lock())
            check_start(run)
            write_request(run, fit.recipe, fit.profile, fit.plan, keeps_stop=is_from_queue())
            if not is_from_queue() and fit.profile.launcher != "slurm":
                write_pause(run, None)  # a trial of a sweep that the user trains on
            if stop.is_set():
                run.stop.touch()  # `write_request` has deleted it as that of an earlier attempt
        output.print_header(console, fit.recipe, fit.profile, fit.batchings[-1], run)
        for text in fit.notes if note is None else [note, *fit.notes]:
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


def _elsewhere(run: RunDirectory) -> str:
    if not run.exists:
        return "name another run directory with --run"
    return f"continue a copy of it (`cp -r {shlex.quote(str(run.path))} NEW`, then `distrain fit --run NEW`)"


def _check(
    request: FitRequest, directory: RunDirectory, recipe: Recipe, options: LaunchOptions, *, preflight: bool
) -> tuple[Profile, list[Batching], list[str]]:
    """Return the profile, the batching for each number of processes that it allows, and notes on the data.

    Raises a `PreflightError` with everything that is wrong or missing, before any process is started.
    """
    debug_options = request.debug_options
    train, faults = recipe.train, list[str]()
    profile = None
    batchings: list[Batching] = []
    notes: list[str] = []
    with collect_errors(faults):
        threads = train.threads or (1 if train.exact else None)
        if options.launcher == "slurm":
            stored = read_profile(directory.profile) if directory.profile.exists() else None
            profile = srun.resolve_allocated(options, srun.read_allocation(os.environ), stored=stored, threads=threads)
        else:
            in_one_process = recipe.parallel.strategy == "dp" or debug_options.debug
            name = request.reference or recipe.name
            profile = resolve_profile(options, threads=threads, in_one_process=in_one_process, recipe=name)
        profile = profile.model_copy(update={"trace": debug_options.trace})
        debug_options.check(processes=profile.world_size)
        batchings = [
            solve_batching(recipe.data.batch_size, train.micro_batch_size, world_size, is_exact=train.exact)
            for world_size in profile.world_sizes
        ]
    with collect_errors(faults):
        notes = check_data(recipe)
    if not directory.exists:  # an existing run resumes with its schedule
        with collect_errors(faults):
            check_schedule(recipe)
    if preflight:
        count = (options.processes or 1) if profile is None else profile.processes
        faults += find_shortages(recipe, directory, processes=count)
        if profile is not None and profile.rendezvous is not None:
            is_local = profile.node_rank == 0
            fault = find_rendezvous_fault(*split_endpoint(profile.rendezvous), is_local=is_local)
            faults += [] if fault is None else [fault]
    if faults or not batchings or profile is None:
        raise PreflightError(faults)
    return profile, batchings, notes


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
