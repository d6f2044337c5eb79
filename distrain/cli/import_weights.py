"""`distrain import`: converts weights saved by another program to a file for model.weights of a recipe."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from distrain.cli.json_output import print_json
from distrain.cli.options import AsJson
from distrain.cli.output_paths import check_file
from distrain.errors import BundleError, ExitCode
from distrain.messages import counted

MAX_NAMES = 8  # of each kind of mismatch, in text

if TYPE_CHECKING:
    from distrain.export.import_weights import ImportedWeights, WeightMatch


def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A .pth, .pt, .bin or .safetensors file of weights.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE.safetensors", help="The file to write.", show_default="beside FILE"),
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="Check that the weights fit this model, named as in model.name.")
    ] = None,
    num_classes: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Outputs of the model.", show_default="as many as FILE has")
    ] = None,
    entry: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Which weights of a file that contains several, such as model_ema."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing --out.")] = False,
    as_json: AsJson = False,
) -> None:
    """Extract the weights from a file of another program, for `--set model.weights=FILE.safetensors`.

    No code in FILE is run: a pickle of a whole model is refused. The weights may be under a key such as "net" or
    "state_dict", and their names may have prefixes such as "module." or "_orig_mod.". With --model they get that
    model's names; if they do not fit it, nothing is written and the exit code is 1.

    Example: `distrain import ckpt.pth --model resnet18 --num-classes 10`
    """
    if not file.is_file():
        raise BundleError(f"there is no file {file}")
    target = file.with_suffix(".safetensors") if out is None else out.expanduser()
    if num_classes is not None and model is None:
        raise BundleError("--num-classes is the number of outputs of --model; give --model, too")
    if target.suffix != ".safetensors":
        raise BundleError(f"--out {target} does not end in .safetensors")
    check_file(target, may_replace=force)
    from distrain.config.user_code import add_to_sys_path
    from distrain.export.import_weights import read_weights_to_import
    from distrain.export.write_bundle import save_tensors, whole_file

    add_to_sys_path(Path.cwd())
    foreign = read_weights_to_import(file, wanted=entry, model_name=model, num_classes=num_classes)
    found = foreign.fit
    is_written = found is None or found.is_good
    if is_written:
        metadata = {"format": "pt", "source": file.name, **{name: str(value) for name, value in foreign.facts.items()}}
        with whole_file(target) as draft:
            save_tensors(foreign.tensors, draft, metadata)
    if as_json:
        print_json(_facts(foreign, target if is_written else None))
    else:
        _print(foreign)
        if found is not None:
            _print_match(str(model), found)
        next_step = f"; use it with --set model.weights={target}" if is_written else ""
        typer.echo(f"{'wrote   ' if is_written else 'nothing was written to'} {target}{next_step}")
    raise typer.Exit(ExitCode.FINISHED if is_written else ExitCode.FAILED)


def _facts(foreign: "ImportedWeights", written: Path | None) -> dict[str, Any]:
    fit = foreign.fit
    return {
        "written": None if written is None else str(written),
        "tensors": len(foreign.tensors),
        "parameters": foreign.num_parameters,
        "entry": foreign.entry,
        "prefixes": [f"{part}." for part in foreign.prefix.split(".") if part],
        "is_average": foreign.is_average,
        "facts": foreign.facts,
        "left": foreign.left,
        "fit": None
        if fit is None
        else {
            "is_good": fit.is_good,
            "num_classes": fit.num_classes,
            "missing": fit.missing,
            "unexpected": fit.unexpected,
            "misshaped": [{"name": n, "in_file": has, "in_model": needs} for n, has, needs in fit.misshaped],
        },
    }


def _print(foreign: "ImportedWeights") -> None:
    entry = "" if foreign.entry is None else f" from {foreign.entry!r}"
    entry += " (a moving average)" if foreign.is_average else ""
    stripped = f", without the prefix {foreign.prefix}" if foreign.prefix else ""
    typer.echo(
        f"read     {counted(len(foreign.tensors), 'tensor')}{entry}, "
        f"{counted(foreign.num_parameters, 'parameter')}{stripped}"
    )
    for name, value in foreign.facts.items():
        typer.echo(f"found    {name}: {value}")
    for name, kind in foreign.left.items():
        typer.echo(f"ignored  {name}: {kind}")


def _print_match(model: str, fit: "WeightMatch") -> None:
    _print_names("missing", fit.missing)
    _print_names("unused", [f"{name}: {model} has no such tensor" for name in fit.unexpected])
    shapes = {
        name: ["x".join(map(str, shape)) or "scalar" for shape in (needs, has)] for name, has, needs in fit.misshaped
    }
    _print_names("shape", [f"{name} should be {needs} and is {has}" for name, (needs, has) in shapes.items()])
    title = f"{model} with {counted(fit.num_classes, 'class', 'classes')}"
    if not fit.is_good:
        typer.echo(f"does not fit {title}: {fit.fault}")
    elif fit.initialised:
        typer.echo(f"fits     {title} except {fit.initialised}, which training initialises")
    else:
        typer.echo(f"fits     {title}")


def _print_names(title: str, lines: list[str]) -> None:
    for line in lines[:MAX_NAMES]:
        typer.echo(f"{title:<8} {line}")
    if (rest := len(lines) - MAX_NAMES) > 0:
        typer.echo(f"{title:<8} and {rest:,} more; --json lists them all")
