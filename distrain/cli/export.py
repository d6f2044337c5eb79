"""`distrain export`: writes a trained network for other programs, after comparing it with the original."""

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
            help="bundle: a folder with all that prediction needs; safetensors: only the weights; torch: a "
            "torch.export program; onnx: an ONNX file.",
        ),
    ] = "bundle",
    out: Annotated[
        Path | None, typer.Option("--out", metavar="PATH", help="What to write.", show_default="RUN/export/...")
    ] = None,
    best: Annotated[bool, typer.Option("--best", help="Only the best checkpoint by evaluation, or none.")] = False,
    images: Annotated[
        list[Path] | None,
        typer.Option(
            "--images",
            metavar="FILE|DIR",
            help="torch, onnx: images for the comparison. Repeatable.",
            show_default="the run's validation images",
        ),
    ] = None,
    with_normalize: Annotated[
        bool, typer.Option("--with-normalize", help="torch, onnx: include the normalisation in the graph.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing PATH.")] = False,
    root: Root = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Write the network of a checkpoint for other programs: the best by evaluation, if it was kept.

    A graph (torch, onnx) accepts batches of any size. It is compared with the network on real images before the file is
    kept; if they differ, the exit code is 1 and there is no file. The preprocessing is written beside it as JSON.

    Example: `distrain export last --format onnx --out ants.onnx`
    """
    from distrain.runs import query
    from distrain.runs.directory import BUNDLE

    if form not in FILES:
        hint = nearest(form, FILES, count=1) or f"; use {joined(list(FILES))}"
        raise BundleError(f"unknown format {form!r}{hint}")
    if (with_normalize or images) and form not in {"torch", "onnx"}:
        raise BundleError(f"--with-normalize and --images are for the formats torch and onnx, not for {form}")
    run, path, reason = query.find_checkpoint(reference, root, must_be_best=best, which=which)
    target = run.export / FILES[form] if out is None else out.expanduser()
    if out is not None and (suffix := Path(FILES[form]).suffix) and target.suffix != suffix:
        raise BundleError(f"--out {out} does not end in {suffix}, which the format {form} needs")
    if out is None:
        run.check_writable(otherwise="name another path with --out")
        run.export.mkdir(exist_ok=True)
    if form == "bundle":
        check_folder(target, may_replace=force, mark=BUNDLE)
    else:
        check_file(target, may_replace=force)
    summary = {"format": form, "path": str(target), "checkpoint": str(path), "chosen": reason}
    summary |= _write(form, run, path, target, images=images or [], with_normalize=with_normalize)
    if (note := query.describe_unsaved(run)) is not None:
        typer.echo(f"note: {note}", err=True)
    if as_json:
        print_json(summary)
    else:
        _print(summary)


def _write(
    form: str, run: "RunDirectory", path: Path, target: Path, *, images: list[Path], with_normalize: bool
) -> dict[str, Any]:
    from distrain.runs.user_code import find_code

    find_code(run)
    from distrain.export.from_checkpoint import open_checkpoint

    if form == "onnx":
        from distrain.export.graph import check_onnx

        check_onnx()
    files = _find_images(images)
    bundle = open_checkpoint(run, path, examples=files)
    comparison = None
    if form == "bundle":
        from distrain.export.write_bundle import write_bundle

        write_bundle(bundle, target)
    elif form == "safetensors":
        from distrain.checkpoint.consolidate import consolidate

        consolidate(path, target, recipe_name=bundle.description.recipe)
    else:
        comparison = _write_graph(form, bundle, run, target, images=files, with_normalize=with_normalize)
    written = [target] if target.is_file() else sorted(target.iterdir())
    return {
        "bytes": sum(file.stat().st_size for file in written),
        "step": bundle.description.step,
        "weights": bundle.description.weights,
        "metrics": bundle.description.metrics,
        "comparison": None if comparison is None else dataclasses.asdict(comparison),
    }


def _write_graph(
    form: str, bundle: "Bundle", run: "RunDirectory", target: Path, *, images: list[Path], with_normalize: bool
) -> "Comparison":
    from distrain.export.formats import NUM_COMPARED, export_graph
    from distrain.export.from_checkpoint import validation_images

    return export_graph(
        bundle,
        target,
        form=form,
        images=images[:NUM_COMPARED] or validation_images(run, NUM_COMPARED),
        with_normalize=with_normalize,
    )


def _find_images(named: list[Path]) -> list[Path]:
    from distrain.data.layout.walk import images_below

    found: list[Path] = []
    for path in named:
        files = [Path(name) for name in images_below(path)] if path.is_dir() else [path] if path.is_file() else []
        if not files:
            raise BundleError(f"--images {path}: there is no such image, or folder with images")
        found += files
    return found


def _print(summary: dict[str, Any]) -> None:
    metrics = summary["metrics"]
    evaluated = "" if metrics is None else f", {format_evaluation(metrics)}"
    typer.echo(f"checkpoint  {summary['checkpoint']} ({summary['chosen']}{evaluated})")
    average = "the moving average, which was evaluated" if summary["weights"] == "moving average" else "as trained"
    typer.echo(f"weights     {average}")
    if (comparison := summary["comparison"]) is not None:
        typer.echo(
            f"compared    on {counted(comparison['num_images'], 'real image')}: largest difference "
            f"{comparison['largest_difference']:.2e} ({comparison['tolerance']:.1e} is tolerated), "
            f"top-1 agrees on {comparison['top1_agreement']:.2%}"
        )
        typer.echo(f"input       see {summary['path']}.json")
    typer.echo(f"wrote       {summary['path']}, {summary['bytes'] / MEBIBYTE:.1f} MiB")
