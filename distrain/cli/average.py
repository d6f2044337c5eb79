"""`distrain checkpoints average`: averages the weights of checkpoints of one or several runs."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from distrain.cli import complete
from distrain.cli.json_output import print_json
from distrain.cli.options import AsJson, DataPath, Root
from distrain.cli.output_paths import check_file
from distrain.errors import CheckpointError, RunError
from distrain.messages import counted
from distrain.system.filesystem import check_writable

if TYPE_CHECKING:
    from distrain.runs.directory import RunDirectory

SAFETENSORS = ".safetensors"


def average(
    references: Annotated[
        list[str],
        typer.Argument(
            metavar="CHECKPOINT...",
            help="Checkpoints: folders, such as RUN/checkpoints/step-*; runs, for the best one of each; or 'RUN STEP', "
            "with a step, best or last.",
            autocompletion=complete.runs,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="RUN|FILE.safetensors",
            help="A new run directory, for eval, export, predict and model.weights; or a file of weights.",
            show_default="ROOT/NAME-averaged",
        ),
    ] = None,
    batchnorm_steps: Annotated[
        int | None,
        typer.Option(
            "--batchnorm-steps",
            metavar="N",
            min=1,
            help="Compute the BatchNorm statistics of the average from the samples of N training steps, on the CPU.",
            show_default="average them, too",
        ),
    ] = None,
    data: DataPath = None,
    root: Root = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Write the mean of the weights of checkpoints, as a run with one checkpoint or as one file.

    Whole numbers, such as BatchNorm's counters, are those of the last checkpoint named, and so is the recipe.

    Example: `distrain checkpoints average 'last 30' 'last 40' 'last 50' --out runs/averaged`
    """
    from distrain.config import change_recipe, read_recipe
    from distrain.runs.directory import RunDirectory

    if len(references) < 2:
        raise RunError(f"{references[0]} is one checkpoint; name two or more to average")
    found = [_find(reference, root) for reference in references]
    paths = [path for _, path in found]
    if twice := next((path for path in paths if paths.count(path) > 1), None):
        raise RunError(f"{twice} is named twice; name each checkpoint once")
    recipe = read_recipe(found[-1][0].recipe)
    target = (root / f"{recipe.name}-averaged" if out is None else out).expanduser()
    _check_target(target)
    for path in paths:
        _check(path)
    if data is not None:
        recipe = change_recipe(recipe, [f"data.path={json.dumps(data)}"])
    from distrain.checkpoint.average import average_checkpoints, write_averaged_run  # torch: after all checks
    from distrain.runs.user_code import find_code

    tensors = average_checkpoints(paths)
    if batchnorm_steps is not None:
        from distrain.training.batchnorm_pass import with_statistics

        find_code(found[-1][0])
        tensors = with_statistics(recipe, tensors, num_steps=batchnorm_steps)
    if target.suffix == SAFETENSORS:
        from distrain.export.write_bundle import save_tensors, whole_file

        with whole_file(target) as draft:
            save_tensors(tensors, draft, {"format": "pt", "recipe": recipe.name})
        checkpoint = None
    else:
        checkpoint = write_averaged_run(RunDirectory(target), recipe, tensors, paths)
    if as_json:
        averaged = [str(path) for path in paths]
        print_json(
            {"out": str(target), "checkpoint": None if checkpoint is None else str(checkpoint), "averaged": averaged}
        )
    else:
        use = f"--set model.weights={target}" if checkpoint is None else f"distrain eval {target}"
        typer.echo(f"wrote {target}: the mean of {counted(len(paths), 'checkpoint')}; {use}")


def _find(reference: str, root: Path) -> "tuple[RunDirectory, Path]":
    """Return the run and the checkpoint that a reference names, as `model.weights` does."""
    from distrain.runs import query

    name, _, which = reference.rpartition(" ")
    is_chosen = bool(name) and (which in {"best", "last"} or which.isdecimal())
    run, path, _ = query.find_checkpoint(
        name if is_chosen else reference, root, must_be_best=False, which=which if is_chosen else None
    )
    return run, path


def _check_target(target: Path) -> None:
    """Raise a `UserError` where the output exists or cannot be written."""
    if target.suffix == SAFETENSORS:
        check_file(target, may_replace=False)
        return
    if target.exists():
        raise RunError(f"{target} exists; name another folder with --out")
    folder = next(parent for parent in target.absolute().parents if parent.is_dir())
    check_writable(folder, otherwise="name a folder elsewhere with --out")


def _check(path: Path) -> None:
    from distrain.runs.checkpoints import find_corruption

    if fault := find_corruption(path):
        raise CheckpointError(f"checkpoint {path} is not used: {fault}")
