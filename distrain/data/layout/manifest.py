"""Reads manifests: tables that name images and their targets, without opening an image."""

import math
import os
from collections.abc import Container, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from distrain.config.data import Data, Split
from distrain.data.layout.bad_rows import RowError, read_good, refuse
from distrain.data.layout.file_list import Listing
from distrain.data.layout.image_folder import TEST, VALIDATION_NAMES
from distrain.data.layout.tables import COLUMN, FORM, READERS, Row, parse_json, read_table
from distrain.errors import DataError
from distrain.messages import counted, escape_control_characters


def read_manifest(config: Data, *, allow_missing: bool = False) -> dict[Split, Listing]:
    """List the images in the manifest `config.path`, in its order, with the targets of `config.target`.

    The manifest is one table, or a folder with train.* and val.*. Each row has a path, relative to its file, and a
    label: a class; for labels a JSON list or `a;b`; for values a number or several of them in such a list. Instead,
    each label or value may have its own column of numbers, `label_NAME`. A column `split` holds train or val (or valid,
    validation, test); without it all rows are training samples. Other columns are not read. Raises `BadRowsError` with
    all rows that are not in this form or, unless `allow_missing`, name an image that does not exist, and `DataError`
    for what is wrong with the table as a whole.
    """
    if config.path is None:
        raise DataError(f"the recipe reads a manifest and none was given; pass it with --data: {FORM}")
    bad: list[str] = []
    rows, notes = _read_splits(Path(config.path), config, bad)
    if not rows["train"]:
        refuse(bad)
    if not allow_missing:
        for found in rows.values():
            _check_images_exist(found, bad)
    if config.target == "class":
        listings = _list_classes(rows, bad)
        notes += _hint_at_labels(listings["train"].classes, config.path)
    else:
        listings = _list_numbers(rows, config, bad)
    refuse(bad)
    paths = [path for listing in listings.values() for path in listing.paths]
    may_repeat = len(set(paths)) < len(paths)
    return listings | {
        "train": replace(listings["train"], notes=tuple(map(escape_control_characters, notes)), may_repeat=may_repeat)
    }


def is_manifest(path: Path) -> bool:
    """Whether a path has the suffix of a manifest, or is a folder with a manifest of training images."""
    if path.is_dir():
        return not (path / "train").is_dir() and any((path / f"train{suffix}").is_file() for suffix in READERS)
    return path.suffix.lower() in READERS


def _read_splits(path: Path, config: Data, bad: list[str]) -> tuple[dict[Split, list[Row]], list[str]]:
    """Return the rows of each split, and sentences on how they were read."""
    notes: list[str] = []
    tables: dict[str, list[Row]] = {}
    if path.is_dir():
        for name in ("train", *VALIDATION_NAMES):
            if (file := _find(path, name)) is not None:
                tables[name], table_notes = read_table(file, config, bad)
                notes += table_notes
        if "train" not in tables:
            raise DataError(f"data folder {path} has no train.csv, train.json or train.jsonl; use {FORM}")
    elif path.exists():
        rows, notes = read_table(path, config, bad)
        for row, split in zip(*read_good(rows, _split_of, bad), strict=True):
            tables.setdefault(split, []).append(row)
        if "train" not in tables:
            refuse(bad)
            raise DataError(f"manifest {path} has no training rows; they need a path, a label and split=train")
    else:
        raise DataError(f"manifest {path} does not exist")
    validation = next((name for name in VALIDATION_NAMES if name in tables), None)
    if validation is None or "val" not in config.splits:
        return {"train": tables["train"]}, notes
    if validation == TEST:
        notes.append(f"{path} has no validation rows: validating on its {TEST} rows")
    return {"train": tables["train"], "val": tables[validation]}, notes


def _find(folder: Path, name: str) -> Path | None:
    found = sorted(folder / f"{name}{suffix}" for suffix in READERS if (folder / f"{name}{suffix}").is_file())
    if len(found) > 1:
        raise DataError(f"data folder {folder} has {found[0].name} and {found[1].name}; keep one of them")
    return found[0] if found else None


def _split_of(row: Row) -> str:
    split = row.cells.get("split", "train")
    if split not in ("train", *VALIDATION_NAMES):
        raise RowError(f"{row.place} has split {split!r}; use train or {', '.join(VALIDATION_NAMES)}")
    return str(split)


def _hint_at_labels(classes: tuple[str, ...], path: str) -> list[str]:
    """Return a sentence on classes that look like several labels in one cell, or an empty list."""
    parts = [part.strip() for name in classes for part in name.split(";")]
    has_repeats = len(set(parts)) < len(parts)
    lists = [name for name in classes if (";" in name and has_repeats) or (name[0] == "[" and name[-1] == "]")]
    return [f"{path}: {lists[0]!r} is read as one class; --set data.target=labels reads several"] if lists else []


def _path(row: Row) -> str:
    return os.path.join(row.folder, row.path)  # noqa: PTH118 - Path objects take seconds per million


def _check_images_exist(rows: list[Row], bad: list[str]) -> None:
    names: dict[str, set[str]] = {}  # listing each folder once is faster than a stat call per image
    for row in rows:
        folder, name = os.path.split(_path(row))
        if folder not in names:
            names[folder] = _names_in(folder or ".")
        if name not in names[folder]:
            bad.append(f"{row.place} names image {_path(row)}, which does not exist; fix or remove the row")


def _names_in(folder: str) -> set[str]:
    return set(os.listdir(folder)) if os.path.isdir(folder) else set()  # noqa: PTH112, PTH208


def _list_classes(rows: dict[Split, list[Row]], bad: list[str]) -> dict[Split, Listing]:
    read = {split: read_good(found, _class_name, bad) for split, found in rows.items()}
    classes = _sorted_names(set(read["train"][1]))
    numbers = {name: number for number, name in enumerate(classes)}
    listings: dict[Split, Listing] = {}
    for split, (found, names) in read.items():
        if split != "train":
            _check_known(zip(found, names, strict=True), numbers, bad)
        targets = tuple(numbers.get(name, 0) for name in names)
        listings[split] = Listing(classes, tuple(map(_path, found)), targets)
    return listings


def _list_numbers(rows: dict[Split, list[Row]], config: Data, bad: list[str]) -> dict[Split, Listing]:
    """List with a number for each output: the given number, or 1 for each label of a row and 0 for the others."""
    first = rows["train"][0]
    columns = tuple(name for name in first.cells if str(name).startswith(COLUMN) and name != COLUMN)
    if config.label_column is not None:
        columns = ()
    if first.label_column is not None and columns:
        raise DataError(f"{first.place} has {first.label_column} and {columns[0]}; keep one of the two forms")
    if columns:
        names = tuple(name.removeprefix(COLUMN) for name in columns)
        read = {s: read_good(rows[s], partial(_read_columns, columns), bad) for s in rows}
    elif config.target == "values":
        read = {s: read_good(rows[s], _read_values, bad) for s in rows}
        count, column = len(next(iter(read["train"][1]), ())), _column(first)
        names = (column,) if count == 1 else tuple(f"{column}_{number}" for number in range(count))
    else:
        found = {s: read_good(rows[s], _read_labels, bad) for s in rows}
        names = _sorted_names({name for labels in found["train"][1] for name in labels})
        if not names:
            refuse(bad)
            raise DataError(f"{first.place} and all other training rows have an empty label")
        named = zip(*found.get("val", ((), ())), strict=True)
        _check_known(((row, name) for row, labels in named for name in labels), set(names), bad)
        read = {s: (kept, [_one_hot(labels, names) for labels in sets]) for s, (kept, sets) in found.items()}
    listings: dict[Split, Listing] = {}
    for split, (found_rows, targets) in read.items():
        for row, values in zip(found_rows, targets, strict=True):
            _check_numbers(values, names, row, config, bad)
        listings[split] = Listing(names, tuple(map(_path, found_rows)), tuple(targets), config.target)
    return listings


def _read_columns(columns: tuple[str, ...], row: Row) -> tuple[float, ...]:
    return tuple(_number(row.cells.get(column), column, row) for column in columns)


def _read_values(row: Row) -> tuple[float, ...]:
    return tuple(_number(value, _column(row), row) for value in _items(row))


def _read_labels(row: Row) -> list[str]:
    return [_label_name(item, row) for item in _items(row)]


def _one_hot(labels: list[str], names: tuple[str, ...]) -> tuple[float, ...]:
    return tuple(float(name in labels) for name in names)


def _class_name(row: Row) -> str:
    label = _label(row)
    if isinstance(label, list):
        raise RowError(f"{row.place} has several labels, {label}; --set data.target=labels reads them")
    return _label_name(label, row)


def _label_name(label: Any, row: Row) -> str:
    if isinstance(label, bool) or not isinstance(label, str | int) or not str(label).strip():
        raise RowError(f"{row.place} has label {label!r}; a label is text or a whole number")
    return str(label).strip()


def _label(row: Row) -> Any:
    column = _column(row)
    if column not in row.cells:
        raise RowError(f"{row.place} has no {column}; it has {', '.join(row.cells)}")
    return row.cells[column]


def _column(row: Row) -> str:
    if row.label_column is None:  # the first row has label_NAME columns; in JSON, others may have different keys
        raise RowError(f"{row.place} has no label; it has {', '.join(row.cells)}")
    return row.label_column


def _items(row: Row) -> list[Any]:
    """Return a label as a list, parsed where it is text."""
    label = _label(row)
    if isinstance(label, str) and label.strip().startswith("["):
        label = parse_json(label, f"{row.place}: label {label!r}")
    if isinstance(label, str):
        return [item.strip() for item in label.split(";") if item.strip()]
    return label if isinstance(label, list) else [label]


def _number(value: Any, column: str, row: Row) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise RowError(f"{row.place} has {column} {value!r}, which is not a finite number")
    return number


def _check_numbers(values: tuple[float, ...], names: tuple[str, ...], row: Row, config: Data, bad: list[str]) -> None:
    if not values or len(values) != len(names):
        bad.append(f"{row.place} has {counted(len(values), 'value')}, but the first training row has {len(names)}")
    elif config.target == "labels" and not set(values) <= {0, 1}:
        bad.append(f"{row.place} has {values}; with data.target=labels the columns {COLUMN}NAME hold 0 or 1")


def _check_known(named: Iterable[tuple[Row, str]], known: Container[str], bad: list[str]) -> None:
    for row, name in named:
        if name not in known:
            hint = ", or it is several labels: --set data.target=labels" if ";" in name else ""
            bad.append(f"{row.place} has label {name!r}, which no training row has; a model cannot learn it{hint}")


def _sorted_names(names: set[str]) -> tuple[str, ...]:
    """Sort names, numerically where all are numbers."""
    if all(name.isdecimal() for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))
