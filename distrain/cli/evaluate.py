"""`distrain eval`: evaluates a trained network, with results for each class and its worst mistakes."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from distrain.cli import complete
from distrain.cli.json_output import print_json
from distrain.cli.options import AsJson, CheckpointName, DeviceName, Overrides, Root, Trained
from distrain.messages import counted
from distrain.system.encoding import printable_name

if TYPE_CHECKING:
    from rich.console import Console

    from distrain.evaluation.results import Predictions
    from distrain.runs.evaluations import Findings

MAX_CLASSES = 50  # rows of the table; of more classes, the least accurate are shown
MAX_LINES = 5  # pairs and mistakes printed on the terminal
_CLASS_COLUMNS = ("class", "samples", "accuracy", "precision", "F1")


def evaluate(
    reference: Trained,
    which: CheckpointName = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="Other data with the same classes: a folder, a packed dataset, or a CSV, JSON or .npz file.",
        ),
    ] = None,
    split: Annotated[
        Literal["train", "val"] | None,
        typer.Option(help="Which samples.", show_default="val, or all if --data has no splits"),
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help="What to measure, such as top1,f1,auroc.",
            show_default="the run's",
            autocompletion=complete.metrics,
        ),
    ] = None,
    best: Annotated[bool, typer.Option("--best", help="Only the best checkpoint by evaluation, or none.")] = False,
    gpus: Annotated[int | None, typer.Option(metavar="N", help="Evaluate on this many GPUs, one process each.")] = None,
    device: DeviceName = None,
    procs: Annotated[int | None, typer.Option(metavar="N", help="Evaluate on this many CPU processes.")] = None,
    overrides: Overrides = None,
    pictures: Annotated[bool, typer.Option(help="Draw the confusion matrix and the worst mistakes.")] = True,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Folder of the results.", show_default="RUN/evaluations/..."),
    ] = None,
    root: Root = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Evaluate a checkpoint: the run's best, or the best that was kept; with equal results on any number of processes.

    Prints the metrics, a table of the classes, the most confused classes, and the worst mistakes. These, the outputs
    for every sample and the images are written to a folder below RUN/evaluations, or to --out.

    Example: `distrain eval last --metrics top1,f1,auroc --procs 2`
    """
    from rich.console import Console

    from distrain.config.profile import read_options
    from distrain.evaluation.launch import run_evaluation
    from distrain.evaluation.request import resolve
    from distrain.evaluation.results import read_predictions
    from distrain.runs import query
    from distrain.worker import run_worker

    run, path, reason = query.find_checkpoint(reference, root, must_be_best=best, which=which)
    changes = [*(overrides or []), *([f"eval.metrics=[{metrics}]"] if metrics is not None else [])]
    folder, recipe, request = resolve(run, path, split=split, overrides=changes, data=data, out=out)
    options = read_options(gpus=gpus, device=device, processes=procs)
    errors = Console(stderr=True, highlight=False)
    if (note := query.describe_unsaved(run)) is not None:
        errors.print(f"note: {note}", markup=False, soft_wrap=True)
    result = run_evaluation(
        folder,
        recipe,
        request,
        options,
        run_worker=run_worker,
        notify=lambda message: errors.print(message, markup=False, soft_wrap=True),
    )
    answers = read_predictions(folder)
    drawn = list[Path]()
    if pictures:
        from distrain.evaluation.pictures import write_pictures

        result, drawn = write_pictures(folder, result, answers)
    if as_json:
        print_json(result)
        return
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"checkpoint  {path} ({reason})", soft_wrap=True, markup=False)
    _print(console, result, answers)
    console.print(f"folder      {folder.path}", soft_wrap=True, markup=False)
    for file in drawn:
        console.print(f"image       {file}", soft_wrap=True, markup=False)


def _print(console: "Console", result: "Findings", answers: "Predictions") -> None:
    from distrain.config.metrics import format_evaluation
    from distrain.runs.confusion import confused_pairs
    from distrain.runs.evaluations import format_badness
    from distrain.system.display import Heading, print_table

    metrics = format_evaluation(result.metrics, split="" if result.split == "all" else result.split)
    weights = ", weights: the moving average" if result.weights == "moving average" else ""
    samples = counted(result.num_samples, "sample")
    console.print(f"{result.split:<11} {samples}: {metrics}{weights}", soft_wrap=True, markup=False)
    if result.classes:
        shown = result.classes
        if len(shown) > MAX_CLASSES:
            shown = sorted(shown, key=lambda row: (row.accuracy is None, row.accuracy))[:MAX_CLASSES]
            console.print(f"the {MAX_CLASSES} least accurate of {counted(len(result.classes), 'class', 'classes')}")
        headings = [Heading(title, is_right=title != "class") for title in _CLASS_COLUMNS]
        cells = [
            [
                printable_name(row.name),
                f"{row.samples:,}",
                *("-" if share is None else f"{share:.2%}" for share in (row.accuracy, row.precision, row.f1)),
            ]
            for row in shown
        ]
        print_table(console, headings, cells)
        every = [row.name for row in result.classes]
        for true, predicted, count in confused_pairs(every, answers.confusion, MAX_LINES):
            console.print(f"confused    {true} predicted as {predicted}: {count}", markup=False)
    for mistake in result.mistakes[:MAX_LINES]:
        text = f"is {mistake.target}, predicted {mistake.prediction} ({format_badness(mistake, result.target)})"
        console.print(f"mistake     {mistake.sample}: {text}", soft_wrap=True, markup=False)
