"""`distrain verify`: checks on this machine that the training of a recipe is reproducible."""

import dataclasses
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from distrain.cli import complete
from distrain.cli.json_output import print_json
from distrain.cli.options import AsJson, DataPath, Overrides, RecipeName
from distrain.messages import counted


def verify(
    recipe: RecipeName = "digits",
    steps: Annotated[int, typer.Option(metavar="N", help="Steps of each training.", min=3)] = 24,
    procs: Annotated[
        str, typer.Option(metavar="N,N,...", help="Numbers of processes to compare; the first also resumes.")
    ] = "1,2",
    device: Annotated[
        str,
        typer.Option(metavar="cpu|cuda", help="cpu, or cuda: a GPU for each process.", autocompletion=complete.devices),
    ] = "cpu",
    overrides: Overrides = None,
    data: DataPath = None,
    as_json: AsJson = False,
) -> None:
    """Train a few steps: in one go, killed and resumed, and on other numbers of processes; compare the bits.

    With `train.exact` all must be identical; without it, only those on the same number of processes. Exit code 1 if
    they are not. Example: `distrain verify digits --set train.exact=true --set train.micro_batch_size=16 --procs 1,2,4`
    """
    from rich.console import Console

    from distrain.benchmark import reproducibility as verification
    from distrain.cli import output
    from distrain.config import load_recipe
    from distrain.errors import ExitCode, LaunchError

    parts = procs.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise LaunchError(f"--procs {procs} is not a list of numbers of processes such as 1,2,4")
    if device not in {"cpu", "cuda"}:
        raise LaunchError(f"--device {device}: must be cpu or cuda")
    resolved = load_recipe(recipe, overrides=overrides or [], data=data)
    arguments = [recipe, *(f"--set={override}" for override in overrides or [])]
    arguments += [] if data is None else [f"--data={data}"]
    scenarios = verification.scenarios([int(part) for part in parts], is_exact=resolved.train.exact)
    console = Console(highlight=False, soft_wrap=True, quiet=as_json)
    console.print(f"{resolved.name}: {counted(steps, 'step')}, in {counted(len(scenarios), 'way')}")
    findings: list[verification.Finding] = []
    with tempfile.TemporaryDirectory(prefix="distrain-verify-") as folder:
        first, unsaved = None, list[str]()
        for number, scenario in enumerate(scenarios):
            with console.status(scenario.title):
                run = verification.train(scenario, Path(folder) / str(number), arguments, steps=steps, device=device)
            if first is None:
                first, unsaved = run, run.read_status().unsaved_state
                if unsaved:
                    output.print_event(console, f"not saved, so not the same after a resume: {', '.join(unsaved)}")
            findings.append(verification.compare(scenario, run, first))
            if number:
                output.print_finding(console, findings[-1])
    holds = all(finding.is_identical for finding in findings if finding.must_match)
    if as_json:
        print_json([dataclasses.asdict(finding) for finding in findings])
    console.print(
        f"[bold green]the promise holds[/bold green], {_SCOPE[resolved.train.exact]}"
        if holds
        else f"[bold red]the promise does not hold[/bold red]: {_reason(unsaved)}",
        soft_wrap=True,
    )
    raise typer.Exit(ExitCode.FINISHED if holds else ExitCode.FAILED)


def _reason(unsaved: list[str]) -> str:
    if unsaved:
        return "the network or the loss has state that is not saved; register buffers, or define get_extra_state"
    return "please report it, with `distrain doctor` and the recipe"


_SCOPE = {
    True: "at every number of processes",
    False: "at an equal number of processes; train.exact=true extends it to all",
}
