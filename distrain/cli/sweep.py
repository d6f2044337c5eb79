"""`distrain sweep`: searches settings of a recipe with many runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from distrain.cli import complete
from distrain.cli.json_output import print_json
from distrain.cli.options import AsJson, DataPath, DeviceName, Overrides, ProfileName, Root

if TYPE_CHECKING:
    from rich.console import Console

    from distrain.service.sweeps.controller import Controller
    from distrain.service.sweeps.results import SweepResult
    from distrain.service.sweeps.setup import Request


def sweep(
    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="RECIPE",
            help="A built-in recipe or a YAML file of a recipe; or a YAML file of a sweep, or the folder of one.",
            show_default="that of the sweep --name",
            autocompletion=complete.recipes,
        ),
    ] = None,
    param: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=RANGE",
            help="What varies: 'optimizer.lr=log(1e-4, 1)', uniform(0, 0.5), int(1, 8), or choices "
            "'model.name=[resnet18, resnet34]'. Repeatable.",
            autocompletion=complete.keys,
        ),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="What is compared.", show_default="eval.best"),
    ] = None,
    trials: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="How many trials.", show_default="20, or the whole grid")
    ] = None,
    parallel: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Trials at a time.", show_default="1")
    ] = None,
    sampler: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="tpe, random, grid, or package.module:function.", show_default="tpe"),
    ] = None,
    prune: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="asha: trials pause after 1, 3, 9, ... epochs, and the best third continues; median: what is worse "
            "than the median of earlier trials is stopped.",
            show_default="none",
        ),
    ] = None,
    rungs: Annotated[
        str | None,
        typer.Option(metavar="N,...", help="Compare after these epochs, or steps: '50,150 steps'; needs --prune."),
    ] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", min=0, help="Of the suggestions.", show_default="0")] = None,
    lag: Annotated[
        int | None,
        typer.Option(
            metavar="W",
            min=1,
            help="Trial n is suggested from trials up to n - W; --parallel is at most W.",
            show_default="--parallel, but 4 or more",
        ),
    ] = None,
    reproducible: Annotated[
        bool | None,
        typer.Option(
            "--reproducible/--no-reproducible",
            help="Suggest and prune from whatever is known, and wait for no trial: the table then depends on timing.",
            show_default="reproducible",
        ),
    ] = None,
    top: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Repeat the best N trials with other seeds.")
    ] = None,
    seeds: Annotated[int | None, typer.Option(metavar="N", min=1, help="With how many other seeds.")] = None,
    name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Of a new sweep, or of one to continue.", show_default="RECIPE-sweep-TIME"),
    ] = None,
    root: Root = Path("runs"),
    overrides: Overrides = None,
    data: DataPath = None,
    gpus: Annotated[int | None, typer.Option(metavar="N", min=1, help="GPUs of each trial.")] = None,
    procs: Annotated[int | None, typer.Option(metavar="N", min=1, help="CPU processes of each trial.")] = None,
    device: DeviceName = None,
    launch: ProfileName = None,
    queue: Annotated[
        str | None,
        typer.Option(metavar="local|slurm", help="Which queue the trials go through.", show_default="local"),
    ] = None,
    nodes: Annotated[int | None, typer.Option(metavar="N", min=1, help="SLURM: nodes of each trial.")] = None,
    sbatch: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="SLURM: an option of sbatch; repeatable.")
    ] = None,
    snapshot: Annotated[
        bool, typer.Option(help="All trials run a copy of this folder's code, made when the sweep begins.")
    ] = True,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what the sweep would do, and start nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Search settings of a recipe: suggest values, train them as ordinary runs, and name the best.

    Trials are the runs NAME-0000, NAME-0001, ... in the queue of this machine, which the sweep runs itself while no
    `distrain serve` does, or of SLURM. Ctrl-C has them save and end; the same command continues, also after a kill.
    Given a seed, the table is the same whatever --parallel, and however often the sweep was interrupted. A sweep needs
    Optuna: `pip install 'distrain[sweep]'`.

    Example: `distrain sweep digits --param 'optimizer.lr=log(1e-3, 1)' --trials 20 --parallel 2 --prune asha`
    """
    from rich.console import Console

    from distrain.errors import ExitCode
    from distrain.service.sweeps import setup
    from distrain.service.sweeps.run import choose_launch, execute
    from distrain.service.sweeps.rungs import read_prune, read_rungs
    from distrain.system.signals import stopping

    places = {
        "queue": queue,
        "launch": launch,
        "device": device,
        "gpus": gpus,
        "procs": procs,
        "nodes": nodes,
        "sbatch": sbatch,
    }
    options: dict[str, Any] = {
        "name": name,
        "set": overrides,
        "data": data,
        "params": _read_params(param or []),
        "metric": metric,
        "trials": trials,
        "parallel": parallel,
        "sampler": sampler,
        "prune": None if prune is None else read_prune(prune),
        "seed": seed,
        "lag": lag,
        "reproducible": reproducible,
        "top": top,
        "seeds": seeds,
        "places": {key: value for key, value in places.items() if value} or None,
    }
    if rungs is not None:
        options["rungs"], options["rung_unit"] = read_rungs(rungs)
    given, root = _read_reference(recipe, root)
    given |= {key: value for key, value in options.items() if value not in (None, {})}
    request = setup.resolve(given, root=root)
    choose_launch(request.sweep.spec.places)
    console = Console(highlight=False, soft_wrap=True, stderr=as_json)
    for note in request.notes:
        console.print(f"note: {note}", markup=False)
    if dry_run:
        console.print(f"{request.sweep.spec.to_yaml()}\nwould be {request.sweep.folder.path}", markup=False)
        return
    with stopping() as stop, _shown(console, request) as (notify, watch):
        result = execute(request, stop, is_snapshot=snapshot, notify=notify, watch=watch)
    if as_json:
        print_json(result.as_json())
    else:
        _print_result(console, result)
    if not result.is_over:
        raise typer.Exit(ExitCode.STOPPED)


def _read_params(texts: list[str]) -> dict[str, Any]:
    from distrain.service.sweeps.parameters import read_parameters

    return {parameter.key: parameter.range for parameter in read_parameters(texts)} if texts else {}


def _read_reference(recipe: str | None, root: Path) -> tuple[dict[str, Any], Path]:
    """Return what the argument gives, a recipe, the content of a file of a sweep or a sweep, and the folder of runs."""
    from distrain.service.sweeps.folder import find_sweep
    from distrain.service.sweeps.spec import is_sweep_text, read_spec

    if recipe is None:
        return {}, root
    path = Path(recipe).expanduser()
    folder = find_sweep(recipe, root) if path.suffix not in {".yaml", ".yml"} or path.name == "sweep.yaml" else None
    if folder is not None:
        return {"name": folder.name}, folder.path.parent
    if path.is_file() and is_sweep_text(path.read_text(encoding="utf-8", errors="replace")):
        return read_spec(path).model_dump(exclude_unset=True), root
    return {"recipe": recipe}, root


@contextmanager
def _shown(console: "Console", request: "Request") -> Iterator[tuple[Any, Any]]:
    """Print what happens above a live line, if this is a terminal; yields the two callbacks of `execute`."""
    from distrain.cli.output import print_event
    from distrain.system.live_line import LiveLine

    controllers: list[Controller] = []
    line = LiveLine(console, lambda width: _draw(controllers[0], width) if controllers else "")
    spec, folder = request.sweep.spec, request.sweep.folder
    verb = "continues" if request.earlier is not None else "sweep"
    print_event(console, f"{verb} {folder.name}: {spec.trials} trials, {spec.parallel} at a time, by {spec.metric}")
    line.start()
    try:
        yield lambda text: print_event(console, text), controllers.append
    finally:
        line.stop()


def _draw(controller: "Controller", width: int) -> str:
    """Return the live line: how far the sweep is, and the best trial so far."""
    from distrain.service.sweeps.controller import format_metric_value
    from distrain.system.display import Column
    from distrain.system.live_line import with_bar

    result = controller.result(is_over=False)
    counts = {state: sum(trial.state == state for trial in result.trials) for state in ("running", "queued", "paused")}
    over, total, best = sum(trial.is_over for trial in result.trials), result.spec.trials or 1, result.best
    columns = [Column(result.name), Column(f"{over}/{total} trials")]
    columns += [Column(f"{count} {state}", 2) for state, count in counts.items() if count]
    if best is not None and best.value is not None:
        value = format_metric_value(result.metric, best.value)
        columns.append(Column(f"best {result.metric} {value} (trial {best.number})", 1))
    return with_bar(columns, width, share=over / total)


def _print_result(console: "Console", result: "SweepResult") -> None:
    from distrain.messages import counted
    from distrain.service.sweeps.controller import format_metric_value
    from distrain.service.sweeps.parameters import as_text
    from distrain.service.sweeps.results import rank
    from distrain.system.display import Heading, print_table

    keys = list(result.spec.params)
    order = {trial.number: place for place, trial in enumerate(rank(result.trials, sign=result.sign))}
    rows = [
        [
            str(trial.number),
            trial.state,
            "" if trial.value is None else format_metric_value(result.metric, trial.value),
            *(as_text(trial.params[key]) for key in keys),
            trial.reason,
        ]
        for trial in sorted(result.trials, key=lambda trial: (order.get(trial.number, len(order)), trial.number))
    ]
    headings = [Heading("trial", is_right=True), Heading("state"), Heading(result.metric, is_right=True)]
    print_table(console, [*headings, *(Heading(key, 1) for key in keys), Heading("", is_text=True)], rows)
    for one in result.repeated:
        spread = "" if one.std is None else f" ± {one.std:.4g}"
        console.print(
            f"trial {one.number}: mean {one.mean:.4g}{spread} over {counted(len(one.values), 'other seed')}",
            markup=False,
        )
    for key, share in sorted(result.importance.items(), key=lambda pair: -pair[1]):
        console.print(f"importance  {share:.0%} {key}", markup=False)
    if result.best is not None:
        console.print(
            f"best      trial {result.best.number}: `distrain fit {result.best_recipe}` trains it", markup=False
        )
    if not result.is_over:
        command = f"distrain sweep --name {result.name} --root {result.path.parent}"
        console.print(f"stopped; all trials are saved, and `{command}` continues", markup=False)
