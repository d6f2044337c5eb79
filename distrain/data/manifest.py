"""Owns manifests: tables in CSV, JSON or JSON lines that name images and their targets. It opens no image."""

import csv
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distrain.data.folder import VALIDATION_NAMES
from distrain.data.listing import Listing
from distrain.errors import DataError
from distrain.recipe.data import Data, Split

FORM = "a .csv, .json or .jsonl file with path and label, or a folder with train.csv and val.csv"
COLUMN = "label_"  # label_NAME is a column of numbers for the output NAME


@dataclass(frozen=True)
class _Row:
    place: str  # such as "photos.csv, line 3"
    folder: str  # what the path is relative to
    cells: dict[str, Any]


def read_manifest(config: Data) -> dict[Split, Listing]:
    """List the images that the manifest `config.path` names, in its order, with the targets of `config.target`.

    The file is one table, or a folder holds train.* and val.*. Each row has `path`, relative to its file, and `label`:
    a class; for labels a JSON list or `a;b`; for values a number or several of them in such a list. Labels and values
    may instead have a column of numbers each, `label_NAME`. A column `split` tells train from val (or valid,
    validation, test); without one all rows train. Other columns are not read. Raises `DataError`, with the line,
    for a row that is not of this form and for an image that is not there.
    """
    if config.path is None:
        raise DataError(f"the recipe reads a manifest and none was given; name it with --data: {FORM}")
    rows = _read_splits(Path(config.path), config)
    for found in rows.values():
        _check_images_exist(found)
    if config.target == "class":
        return _list_classes(rows)
    return _list_numbers(rows, config)


def _read_splits(path: Path, config: Data) -> dict[Split, list[_Row]]:
    if path.is_dir():
        files = {name: _find(path, name) for name in ("train", *VALIDATION_NAMES)}
        tables = {name: list(_read(file)) for name, file in files.items() if file is not None}
        if "train" not in tables:
            raise DataError(f"data folder {path} holds no train.csv, train.json or train.jsonl; a manifest is {FORM}")
    elif path.exists():
        tables = {}
        for row in _read(path):
            tables.setdefault(_split_of(row), []).append(row)
        if "train" not in tables:
            raise DataError(f"manifest {path} has no row to train on; give each one a path, a label and split=train")
    else:
        raise DataError(f"manifest {path} does not exist")
    validation = next((name for name in VALIDATION_NAMES if name in tables), None)
    if validation is None or "val" not in config.splits:
        return {"train": tables["train"]}
    return {"train": tables["train"], "val": tables[validation]}


def _find(folder: Path, name: str) -> Path | None:
    found = sorted(folder / f"{name}{suffix}" for suffix in _READERS if (folder / f"{name}{suffix}").is_file())
    if len(found) > 1:
        raise DataError(f"data folder {folder} holds {found[0].name} and {found[1].name}; keep one of them")
    return found[0] if found else None


def _read(file: Path) -> Iterator[_Row]:
    """Yield the rows of a file, each with a path that is text."""
    reader = _READERS.get(file.suffix.lower())
    if reader is None:
        raise DataError(f"manifest {file} has a name that tells no format; a manifest is {FORM}")
    count = 0
    try:
        for where, cells in reader(file):
            count += 1
            place = f"{file}, {where}"
            if not isinstance(cells, dict):
                raise DataError(f"{place} is {cells!r:.60}, not an object with path and label")
            if not isinstance(cells.get("path"), str) or not cells["path"].strip():
                raise DataError(f"{place} has no path; it has {', '.join(map(str, cells)) or 'nothing'}")
            yield _Row(place, os.path.dirname(file), cells)  # noqa: PTH120 - no ./ before a path beside it
    except UnicodeDecodeError:
        raise DataError(f"manifest {file} is not UTF-8 text; save it as UTF-8") from None
    if not count:
        raise DataError(f"manifest {file} has no rows; give each image one, with path and label")


def _read_csv(file: Path) -> Iterator[tuple[str, Any]]:
    with file.open(encoding="utf-8-sig", newline="") as text:  # spreadsheets write a byte-order mark
        reader = csv.DictReader(text, strict=True, skipinitialspace=True)
        try:
            names = list(reader.fieldnames or ())
            if "path" not in names or len(set(names)) < len(names):
                raise DataError(
                    f"manifest {file} has the columns {', '.join(names) or 'none'}; its first line must name path and "
                    f"label, once each, with commas between"
                )
            for cells in reader:
                if None in cells or None in cells.values():
                    raise DataError(f"{file}, line {reader.line_num} has not {len(names)} cells as the first line has")
                yield f"line {reader.line_num}", cells
        except csv.Error as error:
            raise DataError(f"manifest {file} cannot be read as CSV near line {reader.line_num} ({error})") from None


def _read_json_lines(file: Path) -> Iterator[tuple[str, Any]]:
    with file.open(encoding="utf-8-sig") as text:
        for number, line in enumerate(text, start=1):
            if line.strip():
                yield f"line {number}", _parse_json(line, f"{file}, line {number}")


def _read_json(file: Path) -> Iterator[tuple[str, Any]]:
    table = _parse_json(file.read_text(encoding="utf-8-sig"), f"manifest {file}")
    if not isinstance(table, list):
        raise DataError(f"manifest {file} holds {type(table).__name__}, not a list of objects with path and label")
    for number, cells in enumerate(table, start=1):
        yield f"entry {number}", cells


_READERS: dict[str, Callable[[Path], Iterator[tuple[str, Any]]]] = {
    ".csv": _read_csv,
    ".json": _read_json,
    ".jsonl": _read_json_lines,
}


def _parse_json(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise DataError(f"{place} cannot be read as JSON ({error})") from None


def _split_of(row: _Row) -> str:
    split = row.cells.get("split", "train")
    if split not in ("train", *VALIDATION_NAMES):
        raise DataError(f"{row.place} has split {split!r}; take train or {', '.join(VALIDATION_NAMES)}")
    return str(split)


def _path(row: _Row) -> str:
    return os.path.join(row.folder, row.cells["path"].strip())  # noqa: PTH118 - Path objects take seconds a million


def _check_images_exist(rows: list[_Row]) -> None:
    names: dict[str, set[str]] = {}  # one listing of each folder takes less time than a question for each image
    for row in rows:
        folder, name = os.path.split(_path(row))
        if folder not in names:
            names[folder] = _names_in(folder or ".")
        if name not in names[folder]:
            raise DataError(f"{row.place} names image {_path(row)}, which does not exist; mend or remove the row")


def _names_in(folder: str) -> set[str]:
    return set(os.listdir(folder)) if os.path.isdir(folder) else set()  # noqa: PTH112, PTH208


def _list_classes(rows: dict[Split, list[_Row]]) -> dict[Split, Listing]:
    names = {split: [_class_name(row) for row in found] for split, found in rows.items()}
    classes = _in_order(set(names["train"]))
    numbers = {name: number for number, name in enumerate(classes)}
    listings: dict[Split, Listing] = {}
    for split, found in rows.items():
        for row, name in zip(found, names[split], strict=True):
            _check_known(name, numbers, row)
        listings[split] = Listing(classes, tuple(map(_path, found)), tuple(numbers[name] for name in names[split]))
    return listings


def _list_numbers(rows: dict[Split, list[_Row]], config: Data) -> dict[Split, Listing]:
    """List with a number for each output: given as such, or 1 for each label that a row has and 0 for the others."""
    first = rows["train"][0]
    columns = tuple(name for name in first.cells if str(name).startswith(COLUMN) and name != COLUMN)
    if "label" in first.cells and columns:
        raise DataError(f"{first.place} has label and {columns[0]}; keep one of the two forms")
    names = tuple(name.removeprefix(COLUMN) for name in columns)
    if columns:
        targets = {s: [tuple(_number(r.cells.get(c), c, r) for c in columns) for r in rows[s]] for s in rows}
    elif config.target == "values":
        targets = {s: [tuple(_number(v, "label", r) for v in _items(r)) for r in rows[s]] for s in rows}
        count = len(targets["train"][0])
        names = ("label",) if count == 1 else tuple(f"label_{number}" for number in range(count))
    else:
        found = {s: [[_label_name(item, r) for item in _items(r)] for r in rows[s]] for s in rows}
        names = _in_order({name for labels in found["train"] for name in labels})
        if not names:
            raise DataError(f"{first.place} and all other rows to train on have an empty label")
        for row, labels in zip(rows.get("val", ()), found.get("val", ()), strict=True):
            for name in labels:
                _check_known(name, names, row)
        targets = {s: [tuple(float(name in labels) for name in names) for labels in found[s]] for s in rows}
    for split, numbers in targets.items():
        for row, values in zip(rows[split], numbers, strict=True):
            _check_numbers(values, names, row, config)
    return {
        split: Listing(names, tuple(map(_path, found)), tuple(targets[split]), config.target)
        for split, found in rows.items()
    }


def _class_name(row: _Row) -> str:
    label = _label(row)
    if isinstance(label, list):
        raise DataError(f"{row.place} has several labels, {label}; for those, --set data.target=labels")
    return _label_name(label, row)


def _label_name(label: Any, row: _Row) -> str:
    if isinstance(label, bool) or not isinstance(label, str | int) or not str(label).strip():
        raise DataError(f"{row.place} has label {label!r}; a label is text or a whole number")
    return str(label).strip()


def _label(row: _Row) -> Any:
    if "label" not in row.cells:
        raise DataError(f"{row.place} has no label; it has {', '.join(row.cells)}")
    return row.cells["label"]


def _items(row: _Row) -> list[Any]:
    """Return the list that a label is or that its text stands for."""
    label = _label(row)
    if isinstance(label, str) and label.strip().startswith("["):
        label = _parse_json(label, f"{row.place}: label {label!r}")
    if isinstance(label, str):
        return [item.strip() for item in label.split(";") if item.strip()]
    return label if isinstance(label, list) else [label]


def _number(value: Any, column: str, row: _Row) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"{row.place} has {column} {value!r}, which is not a finite number")
    return number


def _check_numbers(values: tuple[float, ...], names: tuple[str, ...], row: _Row, config: Data) -> None:
    if not values or len(values) != len(names):
        raise DataError(f"{row.place} has {len(values)} values, the first row to train on has {len(names)}")
    if config.target == "labels" and not set(values) <= {0, 1}:
        raise DataError(f"{row.place} has {values}; with data.target=labels the columns {COLUMN}NAME hold 0 or 1")


def _check_known(name: str, names: Iterable[str], row: _Row) -> None:
    if name not in names:
        raise DataError(f"{row.place} has label {name!r}, which no row to train on has; the model could not learn it")


def _in_order(names: set[str]) -> tuple[str, ...]:
    """Sort names, numbers by their value."""
    if all(name.isdecimal() for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))
