"""Checks, launches and reads back an examination, in the control plane."""

from collections.abc import Callable
from contextlib import ExitStack

from distrain.config import Recipe
from distrain.config.profile import Wanted, resolve_profile
from distrain.errors import ExitCode, RunError, StoppedError
from distrain.evaluation.request import Order, write_order
from distrain.evaluation.results import Findings, read_findings
from distrain.launchers import LAUNCHERS
from distrain.launchers.prepare import check_data, write_request
from distrain.launchers.supervisor import RunWorker, execute
from distrain.runs.directory import RunDirectory


def examine(
    folder: RunDirectory,
    recipe: Recipe,
    order: Order,
    wanted: Wanted,
    *,
    run_worker: RunWorker,
    tell: Callable[[str], None],
) -> Findings:
    """Have the order done on as many processes as wanted and return what was found; one process is this one.

    Raises a `UserError` for what is wrong with the question, `RunError` with the first failure of a process, and
    `StoppedError` after a stop.
    """
    profile = resolve_profile(wanted, threads=recipe.train.threads, in_one_process=False, recipe=recipe.name)
    if profile.nodes > 1:
        raise RunError("an examination runs on one machine; leave --nodes out")
    for note in check_data(recipe, needs_validation=order.split == "val"):
        tell(f"note: {note}")
    is_new = not folder.exists
    with ExitStack() as held:
        with folder.created():
            held.enter_context(folder.launching())
            plan = LAUNCHERS[profile.launcher](profile, folder.path)
            write_order(folder, order)
            write_request(folder, recipe, profile, plan)
        ending = execute(plan, folder, profile, run_worker=run_worker, tell=tell)
        if ending.code == ExitCode.FINISHED and folder.findings.exists():
            return read_findings(folder)
        errors = ending.errors
        first = errors[0] if errors else {"message": "the processes left no error", "rank": 0, "exit_code": 1}
        if is_new and (ending.code == ExitCode.STOPPED or first["exit_code"] == ExitCode.BAD_INPUT):
            folder.remove([folder.path.parent])
    if ending.code == ExitCode.STOPPED:
        raise StoppedError
    raise _as_raised(first, folder)


def _as_raised(error: dict[str, object], folder: RunDirectory) -> RunError:
    if error["exit_code"] == ExitCode.BAD_INPUT:
        return RunError(str(error["message"]))
    reason = (str(error["message"]).splitlines() or [""])[0]
    failure = RunError(f"rank {error['rank']} failed: {reason} (log {folder.log(int(str(error['rank'])))})")
    failure.exit_code = ExitCode.FAILED
    return failure
