"""`distrain export`: a trained network for other programs, compared with the original before it is handed out."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from distrain.cli import complete
from distrain.cli.json_output import print_json
from distrain.cli.options import AsJson, CheckpointName, Root, Trained
from distrain.cli.output_paths import check_file, check_folder
from distrain.config.metrics import format_evaluation
from distrain.errors import BundleError
from distrain.messages import MEBIBYTE, counted, joined, nearest

if TYPE_CHECKING:
    from distrain.export import Bundle
    from distrain.export.graph import Comparison
    from distrain.runs.directory import RunDirectory

FILES = {"bundle": "bundle", "safetensors": "model.safetensors", "torch": "model.pt2", "onnx": "model.onnx"}


def export(
    reference: Trained,
    which: CheckpointName = None,
    form: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="FORMAT",
            autocompletion=complete.formats,
            help="bundle: a folder with all that prediction needs; safetensors: the weights alone; torch: a "
            "torch.export program; onnx: an ONNX file.",
        ),
    ] = "bundle",
    out: Annotated[
        Path | None, typer.Option("--out", metavar="PATH", help="What to write.", show_default="RUN/export/...")
    ] = None,
    best: Annotated[bool, typer.Option("--best", help="The best checkpoint by evaluation, and no other.")] = False,
    images: Annotated[
        list[Path] | None,
        typer.Option(
            "--images",
            metavar="FILE|DIR",
            help="torch, onnx: pictures to compare on. Repeatable.",
            show_default="the run's validation images",
        ),
    ] = None,
    with_normalize: Annotated[
        bool, typer.Option("--with-normalize", help="torch, onnx: the graph takes images that are not normalised.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace what stands at PATH.")] = False,
    root: Root = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Write the network of a checkpoint for other programs: the best by evaluation, if it was kept.

    A graph (torch, onnx) takes batches of any size. It is compared with the network on real images before it gets its
    name; exit code 1, and no file, where they differ. How a picture becomes its input is written beside it as JSON.

    Example: `distrain export last --format onnx --out ants.onnx`
    """
    from distrain.runs import query
    from distrain.runs.directory import BUNDLE

    if form not in FILES:
        hint = nearest(form, FILES, count=1) or f"; use {joined(list(FILES))}"
        raise BundleError(f"unknown format {form!r}{hint}")
    if (with_normalize or images) and form not in {"torch", "onnx"}:
        raise BundleError(f"--with-normalize and --images are for the formats torch and onnx, not for {form}")
    run, path, why = query.find_checkpoint(reference, root, must_be_best=best, which=which)
    place = run.export / FILES[form] if out is None else out.expanduser()
    if out is not None and (suffix := Path(FILES[form]).suffix) and place.suffix != suffix:
        raise BundleError(f"--out {out} does not end in {suffix}, as the format {form} does")
    if out is None:
        run.check_writable(otherwise="name a place of your own with --out")
        run.export.mkdir(exist_ok=True)
    if form == "bundle":
        check_folder(place, may_replace=force, mark=BUNDLE)
    else:
        check_file(place, may_replace=force)
    facts = {"format": form, "path": str(place), "checkpoint": str(path), "chosen": why}
    facts |= _write(form, run, path, place, images=images or [], with_normalize=with_normalize)
    if (note := query.describe_unsaved(run)) is not None:
        typer.echo(f"note: {note}", err=True)
    if as_json:
        print_json(facts)
    else:
        _print(facts)


def _write(
    form: str, run: "RunDirectory", path: Path, place: Path, *, images: list[Path], with_normalize: bool
) -> dict[str, Any]:
    from distrain.config.user_code import add_to_sys_path

    add_to_sys_path(Path.cwd())
    from distrain.export.from_checkpoint import open_checkpoint

    if form == "onnx":
        from distrain.export.graph import check_onnx

        check_onnx()
    pictures = _find_pictures(images)
    bundle = open_checkpoint(run, path, examples=pictures)
    comparison = None
    if form == "bundle":
        from distrain.export.write_bundle import write_bundle

        write_bundle(bundle, place)
    elif form == "safetensors":
        from distrain.checkpoint.consolidate import consolidate

        consolidate(path, place, recipe_name=bundle.description.recipe)
    else:
        comparison = _write_graph(form, bundle, run, place, pictures=pictures, with_normalize=with_normalize)
    written = [place] if place.is_file() else sorted(place.iterdir())
    return {
        "bytes": sum(file.stat().st_size for file in written),
        "step": bundle.description.step,
        "weights": bundle.description.weights,
        "metrics": bundle.description.metrics,
        "comparison": None if comparison is None else dataclasses.asdict(comparison),
    }


def _write_graph(
    form: str, bundle: "Bundle", run: "RunDirectory", place: Path, *, pictures: list[Path], with_normalize: bool
) -> "Comparison":
    from distrain.export.formats import NUM_COMPARED, export_graph
    from distrain.export.from_checkpoint import validation_images

    return export_graph(
        bundle,
        place,
        form=form,
        images=pictures[:NUM_COMPARED] or validation_images(run, NUM_COMPARED),
        with_normalize=with_normalize,
    )


def _find_pictures(named: list[Path]) -> list[Path]:
    from distrain.data.layout.walk import images_below

    found: list[Path] = []
    for path in named:
        below = [Path(name) for name in images_below(path)] if path.is_dir() else [path] if path.is_file() else []
        if not below:
            raise BundleError(f"--images {path}: there is no such image, nor a folder with images")
        found += below
    return found


def _print(facts: dict[str, Any]) -> None:
    metrics = facts["metrics"]
    evaluated = "" if metrics is None else f", {format_evaluation(metrics)}"
    typer.echo(f"checkpoint  {facts['checkpoint']} ({facts['chosen']}{evaluated})")
    average = "the moving average, which was evaluated" if facts["weights"] == "moving average" else "as trained"
    typer.echo(f"weights     {average}")
    if (comparison := facts["comparison"]) is not None:
        typer.echo(
            f"compared    on {counted(comparison['num_images'], 'real image')}: largest difference "
            f"{comparison['largest_difference']:.2e} ({comparison['tolerance']:.1e} is tolerated), "
            f"top-1 agrees on {comparison['top1_agreement']:.2%}"
        )
        typer.echo(f"input       see {facts['path']}.json")
    typer.echo(f"wrote       {facts['path']}, {facts['bytes'] / MEBIBYTE:.1f} MiB")
