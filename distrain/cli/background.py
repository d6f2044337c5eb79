"""Starts a run in the background: `distrain fit --detach`."""

from collections.abc import Mapping

from rich.console import Console

from distrain.cli import output
from distrain.cli.run_fit import prepare
from distrain.errors import ExitCode, LaunchError
from distrain.launchers.fit_request import FitRequest
from distrain.launchers.resolve import resolve
from distrain.messages import joined, print_error
from distrain.service import start
from distrain.service.launch import last_sentence
from distrain.system.signals import StopRequest


def check_background(*, queue: bool, detach: bool, wait: bool, in_terminal: Mapping[str, bool]) -> None:
    """Raise `LaunchError` where options for a run in the background contradict each other, or need the terminal."""
    given = [name for name, is_given in {"--queue": queue, "--detach": detach, **in_terminal}.items() if is_given]
    if (queue or detach) and len(given) > 1:
        raise LaunchError(f"{joined(given, last='and')} do not go together; remove one")
    if queue and wait:
        raise LaunchError("--queue waits for devices anyway; remove --wait")


def start_detached(request: FitRequest) -> ExitCode:
    """Write the run directory, start its launcher in the background, and return once it runs.

    Raises as `start` does, before anything is written.
    """
    console = Console(highlight=False, soft_wrap=True, record=True)
    fit = resolve(request)
    if request.dry_run:
        output.print_plan(console, fit.recipe, fit.plan)
        return ExitCode.FINISHED
    start.check_background(
        fit,
        wait=request.wait,
        advice="--detach is for runs on this machine alone; on SLURM use `distrain submit`",
    )
    with prepare(fit, console, StopRequest()):
        pass
    process = start.start_in_background(fit, wait=request.wait)
    if (code := start.await_launcher(fit.run, process, wait=request.wait)) is not None:
        print_error(last_sentence(fit.run))
        return code
    console.print(f"process       {process.pid}, in the background", markup=False)
    console.print(f"next          distrain logs -f {fit.run.path}", markup=False, soft_wrap=True)
    console.print(f"              distrain stop {fit.run.path}", markup=False, soft_wrap=True)
    return ExitCode.FINISHED
