"""Completes words on a command line: names, keys and existing files. Imports no torch."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, get_args

import typer

_YAML = {".yaml", ".yml"}
_MAX_RUNS = 50


def recipes(incomplete: str) -> list[str]:
    """Return the built-in recipes and YAML files."""
    from importlib import resources

    folder = resources.files("distrain") / "recipes"
    names = sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml"))
    return [*_beginning(names, incomplete), *_files(incomplete, _YAML)]


def profiles(incomplete: str) -> list[str]:
    """Return the built-in launch profiles and YAML files."""
    from distrain.launchers.profile_files import builtin_profiles

    return [*_beginning(builtin_profiles(), incomplete), *_files(incomplete, _YAML)]


def runs(context: typer.Context, incomplete: str) -> list[str]:
    """Return `last`, the runs below --root, the newest first, and folders."""
    root = Path(context.params.get("root") or "runs")
    found = [path for path in _entries(root) if (path / "recipe.yaml").is_file()]
    names = [path.name for path in sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)]
    return [*_beginning(["last", *names], incomplete)[:_MAX_RUNS], *_files(incomplete, set())]


def checkpoints(context: typer.Context, incomplete: str) -> list[str]:
    """Return `best`, `last` and the steps of the checkpoints of the run named before."""
    from distrain.errors import DistrainError
    from distrain.runs.checkpoints.paths import committed, step_of
    from distrain.runs.query import find_run

    steps: list[str] = []
    try:
        run = find_run(str(context.params["reference"]), Path(context.params.get("root") or "runs"))
        steps = [str(step_of(path)) for path in committed(run.checkpoints)]
    except (DistrainError, KeyError, OSError):
        pass  # completion prints no errors
    return _beginning(["best", "last", *steps], incomplete)


def keys(incomplete: str) -> list[str]:
    """Return the recipe's keys for --set, each with `=`; after it, the values of a key with a fixed set of values."""
    from distrain.config import Recipe
    from distrain.config.validation import keys_of

    key, equals, _ = incomplete.partition("=")
    if not equals:
        return _beginning([f"{key}=" for key in keys_of(Recipe)], incomplete)
    section: Any = Recipe
    for part in key.split("."):
        field = getattr(section, "model_fields", {}).get(part)
        section = None if field is None else field.annotation
    texts = [choice for part in (section, *get_args(section)) for choice in get_args(part) if isinstance(choice, str)]
    choices = ["true", "false"] if section is bool else texts
    return _beginning([f"{key}={choice}" for choice in choices], incomplete)


def metrics(incomplete: str) -> list[str]:
    """Return the metrics, after those that are already named."""
    from distrain.config.metrics import METRICS

    before, comma, _ = incomplete.rpartition(",")
    return _beginning([f"{before}{comma}{name}" for name in METRICS], incomplete)


def columns(incomplete: str) -> list[str]:
    """Return what `distrain runs --columns` can show, after those columns that are already named."""
    from distrain.config import Recipe
    from distrain.config.metrics import METRICS
    from distrain.config.validation import keys_of
    from distrain.runs.overview import OWN_KEYS

    before, comma, _ = incomplete.rpartition(",")
    metrics = [f"{which}val/{name}" for which in ("", "best.") for name, metric in METRICS.items() if metric.is_number]
    return _beginning([f"{before}{comma}{name}" for name in (*OWN_KEYS, *keys_of(Recipe), *metrics)], incomplete)


def devices(incomplete: str) -> list[str]:
    """Return the kinds of devices."""
    return _beginning(["cpu", "cuda"], incomplete)


def lease_ids(incomplete: str) -> list[str]:
    """Return the devices of this machine, as `distrain devices` lists them."""
    from distrain.service.devices import list_devices

    return _beginning([device.id for device in list_devices()], incomplete)


def launchers(incomplete: str) -> list[str]:
    """Return the launchers."""
    from distrain.config.profile import LauncherName

    return _beginning(get_args(LauncherName), incomplete)


def formats(incomplete: str) -> list[str]:
    """Return the formats of an export."""
    from distrain.cli.export import FILES

    return _beginning(FILES, incomplete)


def sources(incomplete: str) -> list[str]:
    """Return the data sources that read files."""
    return _beginning(["imagefolder", "labelfolders", "manifest", "tensors", "torchvision."], incomplete)


def _beginning(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


def _files(incomplete: str, suffixes: set[str]) -> list[str]:
    """Return the folders, and the files with one of the suffixes, that complete a path."""
    folder, _, start = incomplete.rpartition("/")
    parent = Path(f"{folder}/").expanduser() if "/" in incomplete else Path()
    prefix = f"{folder}/" if "/" in incomplete else ""
    found = [path for path in _entries(parent) if path.name.startswith(start) and not path.name.startswith(".")]
    return [
        f"{prefix}{path.name}{'/' if path.is_dir() else ''}"
        for path in found
        if path.is_dir() or path.suffix in suffixes
    ]


def _entries(folder: Path) -> Iterator[Path]:
    try:
        yield from sorted(folder.iterdir())
    except OSError:
        return
