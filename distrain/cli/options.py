"""Defines the arguments and options that several commands share, with their help and completion."""

from pathlib import Path
from typing import Annotated

import typer

from distrain.cli import complete

RunName = Annotated[
    str,
    typer.Argument(
        metavar="RUN", help="A run's path, its name or the beginning of it, or `last`.", autocompletion=complete.runs
    ),
]
Trained = Annotated[
    str,
    typer.Argument(
        metavar="RUN",
        help="A run's path, its name or the beginning of it, or `last`; or a checkpoint's folder.",
        autocompletion=complete.runs,
    ),
]
CheckpointName = Annotated[
    str | None,
    typer.Argument(
        metavar="STEP",
        help="A checkpoint of the run: its step, best or last.",
        show_default="the best by evaluation",
        autocompletion=complete.checkpoints,
    ),
]
RecipeName = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE",
        help="A built-in recipe (`distrain recipes`) or a YAML file.",
        autocompletion=complete.recipes,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change a value of the recipe (`distrain recipes keys`), as YAML: train.epochs=3, model.weights=null; "
        "quote lists and sections for the shell: 'augment.mean=[0.5]'. Repeatable.",
        autocompletion=complete.keys,
    ),
]
DataPath = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="PATH",
        help="The data: a folder, a packed dataset, or a CSV, JSON, .npz, .pt or .safetensors file; sets data.path.",
    ),
]
DeviceName = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="cpu|cuda",
        help="Where to compute.",
        show_default="a GPU if there is one, else the CPU",
        autocompletion=complete.devices,
    ),
]
ProfileName = Annotated[
    str | None,
    typer.Option(
        "--launch",
        metavar="PROFILE",
        help="Where to train: a launch profile (`distrain launch`), or a YAML file.",
        autocompletion=complete.profiles,
    ),
]
RunFolder = Annotated[
    Path | None,
    typer.Option(
        "--run", metavar="DIR", help="Run directory: a new one, or one to resume.", show_default="a new one in ./runs"
    ),
]
Restarts = Annotated[
    int | None,
    typer.Option(
        "--restarts",
        metavar="N",
        help="Several processes: allowed restarts in a row without a newer checkpoint.",
        show_default="3",
    ),
]
StallTimeout = Annotated[
    float | None,
    typer.Option(
        "--stall-timeout",
        metavar="SECONDS",
        help="Several processes: time without progress that counts as a failure.",
        show_default="120",
    ),
]
Steps = Annotated[
    int | None,
    typer.Option("--steps", metavar="N", min=2, help="Steps of each measurement.", show_default="as many as take 5 s"),
]
Root = Annotated[Path, typer.Option("--root", metavar="DIR", help="The folder that contains the runs.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
