"""Owns the start of a run in the control plane: resolve and check what is asked, write the run directory, launch."""

import hashlib
import json
import os
import shlex
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, suppress
from pathlib import Path

from rich.console import Console

from distrain.cli import output
from distrain.config import Recipe
from distrain.config.batching import Batching, solve_batching
from distrain.config.debug_presets import Aids, debug_post_mortem
from distrain.config.profile import Profile, Wanted, read_profile, resolve_profile
from distrain.errors import ExitCode, LaunchError, PreflightError
from distrain.launchers import LAUNCHERS
from distrain.launchers.abort import end_at_once
from distrain.launchers.multinode.coordinator import Host
from distrain.launchers.multinode.member import Guest
from distrain.launchers.plan import Plan
from distrain.launchers.preflight import find_rendezvous_fault, find_shortages, noted
from distrain.launchers.prepare import RUNS, check_data, check_schedule, resolve_run, write_request
from distrain.launchers.profile_files import read_wanted
from distrain.launchers.slurm import srun
from distrain.launchers.supervisor import Ending, execute
from distrain.messages import print_error
from distrain.runs.directory import RunDirectory
from distrain.runs.log_file import append_to_log
from distrain.runs.stop_requests import stop_on_signal
from distrain.runs.way_back import print_way_back
from distrain.system.live_line import erase_line
from distrain.system.network import split_endpoint
from distrain.system.signals import StopRequest, ignore_signals
from distrain.system.terminal import tolerating_loss
from distrain.worker import run_worker


def start(
    *,
    reference: str | None,
    overrides: list[str],
    data: str | None,
    run: Path | None,
    launch: str | None,
    options: Wanted,
    dry_run: bool,
    verbose: bool,
    aids: Aids,
    preflight: bool,
) -> ExitCode:
    """Train what is asked for to its end, or go on with a run, and tell it to the terminal.

    Raises a `UserError`, with nothing made, where what is asked for is not valid, and a `PreflightError` with all that
    this machine lacks; `preflight` is whether what is only an estimate counts.
    """
    console = Console(highlight=False, soft_wrap=True, record=True)  # what it prints goes to the run's log as well
    wanted = read_wanted(launch, options)
    if wanted.node_rank is None or wanted.launcher == "slurm":  # else each task of srun is one of several machines
        srun.check_started_once(os.environ, command="fit")
    directory, resolved, changes = resolve_run(reference, overrides, data, run, aids)
    is_finished = directory.exists and directory.read_status().state == "finished"
    if not dry_run and not is_finished:
        directory.check_writable(otherwise=_elsewhere(directory))
    profile, batchings, notes = _check(
        directory, resolved, wanted, aids, reference=reference, preflight=preflight and not (dry_run or is_finished)
    )
    plan = LAUNCHERS[profile.launcher](profile, directory.path)
    output.print_changes(console, changes)
    if dry_run:
        output.print_plan(console, resolved, plan)
        return ExitCode.FINISHED
    if is_finished:
        console.print("this run is finished already; train anew in another run directory")
        output.print_summary(console, directory, directory.read_status())
        return ExitCode.FINISHED
    is_one_of_several = profile.nodes > 1 and profile.launcher != "slurm"  # SLURM's launcher is one for all machines
    if is_one_of_several and run is None:
        raise LaunchError("several nodes train in one run directory, which all of them see; name it with --run DIR")
    on_error = debug_post_mortem if aids.post_mortem else None
    with (
        tolerating_loss(),  # a terminal that is closed, or a full disk that takes the output, ends no training
        _stopping_on_signal(directory, plan) as requested,
        ExitStack() as held,
    ):
        if profile.node_rank > 0:
            return _follow(console, directory, profile, plan, requested, _identify(resolved))
        company = _lead(console, directory, profile, _identify(resolved)) if is_one_of_several else None
        is_new = not directory.exists
        with directory.created():
            note = held.enter_context(directory.launching())
            write_request(directory, resolved, profile, plan)
            if requested.is_set():
                directory.stop.touch()  # it was deleted as one of an earlier attempt
        output.print_header(console, resolved, profile, batchings[-1], directory)
        for words in notes if note is None else [note, *notes]:
            output.print_event(console, f"note: {words}")
        _log(console, directory)
        try:
            ending = execute(
                plan,
                directory,
                profile,
                tell=_teller(console, directory),
                requested=requested,
                company=company,
                run_worker=run_worker,
                on_error=on_error,
            )
        except LaunchError:  # the other machines do not come
            _mark_failed(directory)
            raise
        finally:
            erase_line(console)  # a rank that was killed could not take its live line away
        ignore_signals()  # how the run has ended is settled
        _conclude(console, directory, ending, is_new=is_new, verbose=verbose or aids.debug)
        _log(console, directory)
    return ending.code


def _stopping_on_signal(run: RunDirectory, plan: Plan) -> AbstractContextManager[StopRequest]:
    earlier = run.read_status().mark
    return stop_on_signal(run, kill=lambda: end_at_once(run, earlier=earlier, cleanup=plan.cleanup), is_last=True)


def _elsewhere(run: RunDirectory) -> str:
    if not run.exists:
        return "name a run directory of your own with --run"
    return f"continue a copy of it (`cp -r {shlex.quote(str(run.path))} NEW`, then `distrain fit --run NEW`)"


def _check(
    directory: RunDirectory, recipe: Recipe, wanted: Wanted, aids: Aids, *, reference: str | None, preflight: bool
) -> tuple[Profile, list[Batching], list[str]]:
    """Return the profile, how the batch is cut at each number of processes that it allows, and notes on the data.

    Raises a `PreflightError` with all that is wrong or lacking, found before any process is started.
    """
    train, faults = recipe.train, list[str]()
    profile = None
    batchings: list[Batching] = []
    notes: list[str] = []
    with noted(faults):
        threads = train.threads or (1 if train.exact else None)
        if wanted.launcher == "slurm":
            stored = read_profile(directory.profile) if directory.profile.exists() else None
            profile = srun.resolve_allocated(wanted, srun.read_allocation(os.environ), stored=stored, threads=threads)
        else:
            in_one_process = recipe.parallel.strategy == "dp" or aids.debug
            name = reference or recipe.name
            profile = resolve_profile(wanted, threads=threads, in_one_process=in_one_process, recipe=name)
        profile = profile.model_copy(update={"trace": aids.trace})
        aids.check(processes=profile.world_size)
        batchings = [
            solve_batching(recipe.data.batch_size, train.micro_batch_size, world_size, is_exact=train.exact)
            for world_size in profile.world_sizes
        ]
    with noted(faults):
        notes = check_data(recipe)
    if not directory.exists:  # what was begun with it goes on
        with noted(faults):
            check_schedule(recipe)
    if preflight:
        count = (wanted.processes or 1) if profile is None else profile.processes
        faults += find_shortages(recipe, directory, processes=count)
        if profile is not None and profile.rendezvous is not None:
            is_own = profile.node_rank == 0
            fault = find_rendezvous_fault(*split_endpoint(profile.rendezvous), is_own=is_own)
            faults += [] if fault is None else [fault]
    if faults or not batchings or profile is None:
        raise PreflightError(faults)
    return profile, batchings, notes


def _lead(console: Console, run: RunDirectory, profile: Profile, identity: str) -> Host:
    launcher = LAUNCHERS[profile.launcher]
    return Host(profile, run, identity=identity, plan=lambda now: launcher(now, run.path), tell=_teller(console, run))


def _follow(
    console: Console,
    found: RunDirectory,
    profile: Profile,
    plan: Plan,
    requested: StopRequest,
    identity: str,
) -> ExitCode:
    """Train as one of the machines after the first, which alone writes the run directory and says how it goes on."""
    run = RunDirectory(found.path, node_rank=profile.node_rank)
    launcher, tell = LAUNCHERS[profile.launcher], _teller(console, run)
    company = Guest(profile, run, identity=identity, plan=lambda now: launcher(now, run.path), tell=tell)
    ending = execute(plan, run, profile, tell=tell, requested=requested, company=company)
    ignore_signals()
    if ending.code == ExitCode.FINISHED:
        output.print_summary(console, run, run.read_status())
    elif ending.code == ExitCode.STOPPED:
        output.print_stopped(console, run, run.read_status())
    else:
        output.print_failure(console, run, ending.errors, verbose=False)
    _log(console, run)
    return ending.code


def _teller(console: Console, run: RunDirectory) -> Callable[[str], None]:
    def tell(words: str) -> None:
        erase_line(console)
        output.print_event(console, words)
        _log(console, run)

    return tell


def _log(console: Console, run: RunDirectory) -> None:
    """Write to the run's log what was printed since the last time: a terminal may be gone."""
    append_to_log(run.spoken_log, console.export_text())


def _identify(recipe: Recipe) -> str:
    """Return a word that is the same on two machines only if they were given the same training."""
    return hashlib.sha256(json.dumps(recipe.identity, sort_keys=True).encode()).hexdigest()[:16]


def _conclude(console: Console, run: RunDirectory, ending: Ending, *, is_new: bool, verbose: bool) -> None:
    """Tell how the run ended; bad input that stopped a new run before its first checkpoint leaves nothing behind."""
    with suppress(OSError):
        run.stop.unlink(missing_ok=True)  # a signal that came late has asked for nothing
    status, code = run.read_status(), ending.code
    if code == ExitCode.FINISHED:
        output.print_summary(console, run, status)
        return
    if code == ExitCode.STOPPED:
        if status.state != "stopped":  # no rank was there yet to say it
            status.close("stopped")
            run.write_status(status)
        output.print_stopped(console, run, status)
        return
    errors = ending.errors
    if code == ExitCode.BAD_INPUT and errors:
        if verbose:
            console.print(errors[0]["traceback"].rstrip(), markup=False)
        if is_new and not any(run.checkpoints.iterdir()) and read_profile(run.profile).nodes == 1:
            run.remove([run.path.parent] if run.path.parent == RUNS.absolute() else [])
        more = "; --verbose prints the traceback" if errors[0].get("is_mistake") and not (verbose or run.exists) else ""
        print_error(f"{errors[0]['message']}{more}")
        if run.exists:
            print_way_back(console, run)
        return
    _mark_failed(run)
    output.print_failure(console, run, errors, verbose=verbose)


def _mark_failed(run: RunDirectory) -> None:
    """Write what the ranks cannot write any more."""
    status = run.read_status()
    status.close("failed")
    with suppress(OSError):  # a full disk, perhaps: the failure is told all the same
        run.write_status(status)
