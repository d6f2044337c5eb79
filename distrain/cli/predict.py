"""`distrain predict`: prints the predictions of a trained network for images, batch by batch."""

import csv
import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from distrain.cli import complete
from distrain.cli.options import DeviceName, Root
from distrain.errors import DataError, ExitCode, RunError
from distrain.messages import print_error
from distrain.preload import gc_paused
from distrain.system.files import strict_json
from distrain.system.filesystem import check_writable

if TYPE_CHECKING:
    from distrain.export import Bundle
    from distrain.export.predict import Prediction

TOP_K = 5
ALL_CLASSES = 20  # for a single image all classes are printed, unless there are more than this
BAR = 32  # characters
MAX_WORKERS = 8  # more processes are hardly faster


def predict(
    reference: Annotated[
        str,
        typer.Argument(
            metavar="RUN",
            help="A run, as for `distrain runs show`; a checkpoint's folder; or a bundle.",
            autocompletion=complete.runs,
        ),
    ],
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE",
            help="Images, folders of images, or `-` to read paths from standard input, one on each line.",
        ),
    ],
    top_k: Annotated[
        int | None, typer.Option("--top-k", metavar="N", min=1, help="Classes for each image.", show_default="5")
    ] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV, one line for each image.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON Lines, one object for each image.")] = False,
    batch_size: Annotated[int, typer.Option(metavar="N", min=1, help="Images in one forward pass.")] = 32,
    device: DeviceName = None,
    workers: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Processes that decode.", show_default="one for each CPU, up to 8"),
    ] = None,
    show: Annotated[bool, typer.Option("--show", help="One image: write an annotated copy, and show it here.")] = False,
    root: Root = Path("runs"),
) -> None:
    """Predict images with a run's best checkpoint, or with a bundle, in the order in which they are named.

    A folder is read at any depth, sorted. An image that cannot be read is reported in its place, with an `error` in CSV
    and JSON and otherwise on standard error, and the others are predicted; the exit code is then 1.

    Example: `distrain predict last photos --csv > photos.csv`
    """
    if as_csv and as_json:
        raise DataError("--csv and --json exclude each other; choose one")
    paths, count = _find_paths(images)
    if show and (count != 1 or as_csv or as_json):
        raise DataError("--show is for a single image, without --csv or --json")
    if show:
        check_writable(
            Path.cwd(), otherwise="run the command in another folder, in which the annotated image is written"
        )
    bundle = _open(reference, root, device=device)
    kind = "csv" if as_csv else "json" if as_json else "one" if count == 1 else "lines"
    if top_k is None:
        top_k = ALL_CLASSES if count == 1 and len(bundle.classes) <= ALL_CLASSES else TOP_K
    from distrain.export.predict import predict_files

    num_workers = workers or min(MAX_WORKERS, len(os.sched_getaffinity(0)))
    has_failed = False
    with closing(predict_files(bundle, paths, batch_size=batch_size, num_workers=num_workers)) as batches:
        if kind == "csv":
            _print_csv([_csv_header(bundle, top_k)])
        for batch in _with_progress(batches, count):
            _print(kind, batch, bundle, top_k)
            has_failed = has_failed or any(prediction.error for prediction in batch)
            if show and not has_failed:
                _show(batch[0], bundle, top_k)
    raise typer.Exit(ExitCode.FAILED if has_failed else ExitCode.FINISHED)


def _find_paths(named: list[str]) -> tuple[Iterable[str], int | None]:
    """Return the paths of all images and their number, None where they come from standard input.

    Raises `DataError` where there is no image.
    """
    if "-" in named:
        lines = _stdin_lines()
        first = next(lines, None)
        if first is None and named == ["-"]:
            raise DataError("standard input has no paths of images; `-` reads them from it, one on each line")
        piped = lines if first is None else chain([first], lines)
        return chain.from_iterable(piped if name == "-" else _below(name) for name in named), None
    paths = [path for name in named for path in _below(name)]
    if not any(Path(path).is_file() for path in paths):
        raise DataError(f"there is no image {paths[0]}; name images, folders, or `-` for standard input")
    return paths, len(paths)


def _below(name: str) -> list[str]:
    from distrain.data.layout.walk import Walk, images_below

    if not Path(name).is_dir():
        return [name]
    walk = Walk(Path(name))
    walk.begin([name])
    found = images_below(Path(name), walk)
    for note in walk.notes():
        typer.echo(f"note: {note}", err=True)
    if not found:
        raise DataError(f"folder {name} has no image in it, at any depth")
    return found


def _stdin_lines() -> Iterator[str]:
    return (line.rstrip("\r\n") for line in sys.stdin if line.strip())


def _open(reference: str, root: Path, *, device: str | None) -> "Bundle":
    from distrain.config.user_code import add_to_sys_path
    from distrain.runs import query
    from distrain.runs.directory import BUNDLE
    from distrain.runs.user_code import find_code
    from distrain.system.gpus import count_gpus

    folder = Path(reference).expanduser()
    is_bundle = (folder / BUNDLE).is_file()
    try:
        checkpoint = None if is_bundle else query.find_checkpoint(reference, root, must_be_best=False)
    except query.NoSuchRunError as error:
        raise RunError(f"{error}; or name the folder of a bundle, which `distrain export` writes") from None
    add_to_sys_path(Path.cwd())
    device = device or ("cuda" if count_gpus() else "cpu")  # an unusable GPU is an error, and not ignored
    with gc_paused():
        import torchvision.transforms.v2  # noqa: F401 - what a bundle's preprocessing is made of

        from distrain import export as bundle

    if checkpoint is None:
        return bundle.load(folder, device=device)
    from distrain.export.from_checkpoint import open_checkpoint

    run, path, reason = checkpoint
    find_code(run)
    typer.echo(f"{path.name} of {run.path} ({reason})", err=True)
    return open_checkpoint(run, path, device=device)


def _with_progress(batches: Iterable[list["Prediction"]], count: int | None) -> Iterator[list["Prediction"]]:
    """Yield the batches, and show progress on a terminal on standard error if there is more than one image."""
    from rich.console import Console

    from distrain.system.live_line import LiveProgress

    if count == 1:
        yield from batches
        return
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    with LiveProgress(console, "predicting", count, unit="images") as progress:
        for batch in batches:
            yield batch
            progress.advance(len(batch))


def _print(kind: str, batch: list["Prediction"], bundle: "Bundle", top_k: int) -> None:
    if kind == "csv":
        _print_csv([_csv_row(prediction, bundle, top_k) for prediction in batch])
    else:
        for prediction in batch:
            if kind == "json":
                row = strict_json(_json_row(prediction, bundle, top_k), ensure_ascii=False)
                print(row if _is_utf8(row) else json.dumps(json.loads(row)))
            elif prediction.error is not None:
                print_error(prediction.error)  # not typer.echo, which would write into the bar
            else:
                print(_line(prediction, bundle, top_k) if kind == "lines" else _bars(prediction, bundle, top_k))
    sys.stdout.flush()  # the reader of a pipe gets each batch when it is done


def _is_utf8(text: str) -> bool:
    """Whether the text can be printed as UTF-8: in any other encoding it would not be JSON."""
    is_text = not any("\ud800" <= character <= "\udfff" for character in text)
    return is_text and sys.stdout.encoding.lower().replace("-", "") == "utf8"


def _print_csv(rows: list[list[str]]) -> None:
    csv.writer(sys.stdout, lineterminator="\n").writerows(rows)


def _csv_header(bundle: "Bundle", top_k: int) -> list[str]:
    if bundle.description.target == "values":
        return ["image", "error", *bundle.classes]
    places = range(1, min(top_k, len(bundle.classes)) + 1)
    return ["image", "error", *(f"{name}_{place}" for place in places for name in ("class", "probability"))]


def _csv_row(prediction: "Prediction", bundle: "Bundle", top_k: int) -> list[str]:
    if prediction.error is not None:
        return [prediction.image, prediction.error, *[""] * (len(_csv_header(bundle, top_k)) - 2)]
    named = _named(prediction, bundle, top_k)
    if bundle.description.target == "values":
        return [prediction.image, "", *(f"{value:.6g}" for _, value in named)]
    return [prediction.image, "", *(text for name, value in named for text in (name, f"{value:.6f}"))]


def _json_row(prediction: "Prediction", bundle: "Bundle", top_k: int) -> dict[str, Any]:
    if prediction.error is not None:
        return {"image": prediction.image, "error": prediction.error}
    named = _named(prediction, bundle, top_k)
    if bundle.description.target == "values":
        return {"image": prediction.image, "values": dict(named)}
    rows = [{"class": name, "probability": round(value, 6)} for name, value in named]
    return {"image": prediction.image, "predictions": rows}


def _line(prediction: "Prediction", bundle: "Bundle", top_k: int) -> str:
    is_value = bundle.description.target == "values"
    named = _named(prediction, bundle, top_k)
    return "  ".join([prediction.image, *(f"{n} {v:.4g}" if is_value else f"{n} {v:.1%}" for n, v in named)])


def _bars(prediction: "Prediction", bundle: "Bundle", top_k: int) -> str:
    named = _named(prediction, bundle, top_k)
    width = max(len(name) for name, _ in named)
    if bundle.description.target == "values":
        return "\n".join(f"{name:<{width}}  {value:.4g}" for name, value in named)
    return "\n".join(f"class: {n:<{width}}  prob: {v:.3f}  {'█' * round(v * BAR)}".rstrip() for n, v in named)


def _named(prediction: "Prediction", bundle: "Bundle", top_k: int) -> list[tuple[str, float]]:
    """Return (name, value) of the outputs to print: all values in their order, or the most likely classes."""
    from distrain.export.predict import best_outputs

    is_value = bundle.description.target == "values"
    outputs = range(len(prediction.values)) if is_value else best_outputs(prediction.values, top_k)
    return [(bundle.classes[output], prediction.values[output]) for output in outputs]


def _show(prediction: "Prediction", bundle: "Bundle", top_k: int) -> None:
    from rich.console import Console

    from distrain.export.prediction_image import annotate, preview

    image = Path(prediction.image)
    file = Path(f"{image.stem}-predicted.png")
    annotate(image, _named(prediction, bundle, top_k), file)
    console = Console()
    if console.is_terminal and console.color_system in {"256", "truecolor"}:
        console.print(preview(image))
    typer.echo(f"wrote {file}", err=True)
