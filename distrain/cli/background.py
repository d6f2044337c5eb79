"""Starts a run in the background: `distrain fit --detach`."""

import time
from collections.abc import Mapping

from rich.console import Console

from distrain.cli import output
from distrain.cli.fit_request import FitRequest
from distrain.cli.run_fit import prepare, resolve
from distrain.errors import ExitCode, LaunchError
from distrain.messages import joined, print_error
from distrain.service.devices import lease_devices
from distrain.service.launch import last_sentence, start_launcher
from distrain.system.signals import StopRequest

_POLL_S = 0.05


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
    console, stop = Console(highlight=False, soft_wrap=True, record=True), StopRequest()
    fit = resolve(request)
    if fit.spans_nodes or fit.profile.launcher == "slurm":
        raise LaunchError("--detach is for runs on this machine alone; on SLURM use `distrain submit`")
    if request.dry_run:
        output.print_plan(console, fit.recipe, fit.plan)
        return ExitCode.FINISHED
    if not request.wait:
        with lease_devices(fit.profile, fit.run.path, wait=False, is_over=stop.is_set, notify=_ignore):
            pass  # refuses at once where too few are free
    with prepare(fit, console, stop):
        pass
    process = start_launcher(fit.run, fit.profile, ["--wait"] if request.wait else [])
    while not fit.run.is_held:
        if (code := process.poll()) is not None and code != ExitCode.FINISHED:
            print_error(last_sentence(fit.run))
            return ExitCode(code) if code in set(ExitCode) else ExitCode.FAILED
        if code == ExitCode.FINISHED or (request.wait and _is_waiting(fit.run.console_log.read_text(encoding="utf-8"))):
            break
        time.sleep(_POLL_S)
    console.print(f"process       {process.pid}, in the background", markup=False)
    console.print(f"next          distrain logs -f {fit.run.path}", markup=False, soft_wrap=True)
    console.print(f"              distrain stop {fit.run.path}", markup=False, soft_wrap=True)
    return ExitCode.FINISHED


def _is_waiting(log: str) -> bool:
    return log.splitlines()[-1:] != [] and log.splitlines()[-1].startswith("waiting: ")


def _ignore(_: str) -> None:
    """Drop a note, which the launcher in the background prints again."""
