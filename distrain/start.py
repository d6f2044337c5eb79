"""Owns the start of a run in the control plane: resolve and check what is asked, write the run directory, launch."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from distrain import report
from distrain.batching import solve_batching
from distrain.data.folder import scan_image_folder
from distrain.environment import describe_environment
from distrain.errors import DataError, ExitCode, LaunchError, RunError
from distrain.launchers import LAUNCHERS
from distrain.launchers.guest import Guest
from distrain.launchers.host import Host
from distrain.launchers.launchfile import read_wanted
from distrain.launchers.plan import Plan
from distrain.launchers.profile import Profile, Wanted, read_profile, resolve_profile
from distrain.launchers.supervise import Ending, execute
from distrain.recipe import Recipe, load_recipe, read_recipe
from distrain.rundir import RunDirectory, Status, new_run_directory, write_atomically

DEFAULT_RECIPE = "digits"
RUNS = Path("runs")


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
) -> ExitCode:
    """Train what is asked for to its end, or go on with a run, and tell it to the terminal.

    Raises a `UserError`, with nothing made, where what is asked for is not valid.
    """
    console = Console(highlight=False)
    wanted = read_wanted(launch, options)
    directory, resolved = _resolve(reference, overrides, data, run)
    train = resolved.train
    profile = resolve_profile(
        wanted,
        threads=train.threads or (1 if train.exact else None),
        recipe=reference or resolved.name,
    )
    batchings = [
        solve_batching(resolved.data.batch_size, train.micro_batch_size, world_size, is_exact=train.exact)
        for world_size in profile.world_sizes
    ]
    _check_data(resolved)
    plan = LAUNCHERS[profile.launcher](profile, directory.path)
    if dry_run:
        report.print_plan(console, resolved, plan)
        return ExitCode.FINISHED
    if directory.exists and directory.read_status().state == "finished":
        console.print("this run is finished already; train anew in another run directory")
        report.print_summary(console, directory, directory.read_status())
        return ExitCode.FINISHED
    if profile.nodes > 1 and run is None:
        raise LaunchError("several nodes train in one run directory, which all of them see; name it with --run DIR")
    if profile.node_rank > 0:
        return _follow(console, directory, profile, plan, _identify(resolved))
    is_new = not directory.exists
    company = _lead(console, directory, profile, _identify(resolved)) if profile.nodes > 1 else None
    directory.create()
    with directory.launching():
        _write(directory, resolved, profile, plan)
        report.print_header(console, resolved, profile, batchings[-1], directory)
        try:
            ending = execute(plan, directory, profile, tell=_teller(console), company=company)
        except LaunchError:  # the other machines do not come
            _mark_failed(directory)
            raise
        except KeyboardInterrupt:
            _mark_failed(directory)
            report.print_killed(console, directory)
            return ExitCode.FAILED
        finally:
            console.show_cursor()  # a rank that was killed could not: its live line had hidden it
        _conclude(console, directory, ending, is_new=is_new, verbose=verbose)
    return ending.code


def _lead(console: Console, run: RunDirectory, profile: Profile, identity: str) -> Host:
    launcher = LAUNCHERS[profile.launcher]
    return Host(profile, run, identity=identity, plan=lambda now: launcher(now, run.path), tell=_teller(console))


def _follow(console: Console, found: RunDirectory, profile: Profile, plan: Plan, identity: str) -> ExitCode:
    """Train as one of the machines after the first, which alone writes the run directory and says how it goes on."""
    run = RunDirectory(found.path, node_rank=profile.node_rank)
    launcher, tell = LAUNCHERS[profile.launcher], _teller(console)
    company = Guest(profile, run, identity=identity, plan=lambda now: launcher(now, run.path), tell=tell)
    try:
        ending = execute(plan, run, profile, tell=tell, company=company)
    except KeyboardInterrupt:
        report.print_killed(console, run)
        return ExitCode.FAILED
    if ending.code == ExitCode.FINISHED:
        report.print_summary(console, run, run.read_status())
    elif ending.code == ExitCode.STOPPED:
        report.print_stopped(console, run, run.read_status())
    else:
        report.print_failure(console, run, run.read_errors(ending.since), verbose=False)
    return ending.code


def _teller(console: Console) -> Callable[[str], None]:
    return lambda words: report.print_event(console, words)


def _identify(recipe: Recipe) -> str:
    """Return a word that is the same on two machines only if they were given the same training."""
    return hashlib.sha256(json.dumps(recipe.identity, sort_keys=True).encode()).hexdigest()[:16]


def _resolve(
    reference: str | None, overrides: list[str], data: str | None, path: Path | None
) -> tuple[RunDirectory, Recipe]:
    """Return the run directory and the recipe; a run that exists goes on with its own, and with no other."""
    existing = RunDirectory(path.absolute()) if path is not None else None
    if existing is None or not existing.exists:
        recipe = load_recipe(reference or DEFAULT_RECIPE, overrides=overrides, data=data)
        return existing or new_run_directory(recipe.name, RUNS.absolute()), recipe
    stored = read_recipe(existing.recipe)
    recipe = load_recipe(reference or str(existing.recipe), overrides=overrides, data=data)
    if changed := _differences(stored.identity, recipe.identity):
        raise RunError(
            f"run directory {existing.path} holds a recipe with another {changed[0]}; "
            f"go on with its own by `distrain fit --run {existing.path}`, or name a new directory"
        )
    return existing, recipe


def _differences(before: dict[str, object], after: dict[str, object], prefix: str = "") -> list[str]:
    found: list[str] = []
    for key in {**before, **after}:
        old, new = before.get(key), after.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found += _differences(old, new, f"{prefix}{key}.")
        elif old != new:
            found.append(f"{prefix}{key} ({old!r}, not {new!r})")
    return found


def _check_data(recipe: Recipe) -> None:
    """Find a missing folder or class before any process is started; only names are read."""
    path = recipe.data.path
    if path is not None and not Path(path).exists():
        raise DataError(f"data folder {path} does not exist")
    if recipe.data.source == "imagefolder":
        scan_image_folder(path)


def _write(run: RunDirectory, recipe: Recipe, profile: Profile, plan: Plan) -> None:
    """Write what is asked for into the run directory, in which nobody may be training."""
    with run.locked():
        run.stop.unlink(missing_ok=True)
        write_atomically(run.recipe, recipe.to_yaml())
        write_atomically(run.profile, profile.to_yaml())
        write_atomically(run.environment, json.dumps(describe_environment(), indent=1))
        write_atomically(
            run.plan, json.dumps({"argv": plan.argv, "env": dict(plan.env), "cwd": str(plan.cwd)}, indent=1)
        )
        if not run.status.exists():
            run.write_status(Status())


def _conclude(console: Console, run: RunDirectory, ending: Ending, *, is_new: bool, verbose: bool) -> None:
    """Tell how the run ended; bad input that stopped a new run before its first checkpoint leaves nothing behind."""
    status, code = run.read_status(), ending.code
    if code == ExitCode.FINISHED:
        report.print_summary(console, run, status)
        return
    if code == ExitCode.STOPPED:
        if status.state != "stopped":  # no rank was there yet to say it
            status.close("stopped")
            run.write_status(status)
            run.stop.unlink(missing_ok=True)
        report.print_stopped(console, run, status)
        return
    errors = run.read_errors(ending.since)
    if code == ExitCode.BAD_INPUT and errors:
        if verbose:
            console.print(errors[0]["traceback"].rstrip(), markup=False)
        if is_new and not any(run.checkpoints.iterdir()) and read_profile(run.profile).nodes == 1:
            run.remove()
            if run.path.parent == RUNS.absolute() and not any(run.path.parent.iterdir()):
                run.path.parent.rmdir()
        Console(stderr=True, highlight=False).print(f"distrain: {errors[0]['message']}", markup=False, soft_wrap=True)
        return
    _mark_failed(run)
    report.print_failure(console, run, errors, verbose=verbose)


def _mark_failed(run: RunDirectory) -> None:
    """Write what the ranks cannot write any more."""
    status = run.read_status()
    status.close("failed")
    run.write_status(status)
