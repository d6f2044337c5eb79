"""Reads tables in CSV, JSON or JSON lines whose rows name an image and its label."""

import csv
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distrain.config.data import Data
from distrain.data.layout.bad_rows import RowError, refuse
from distrain.errors import DataError
from distrain.messages import counted

FORM = "a .csv, .tsv, .json or .jsonl file with path and label, or a folder with train.csv and val.csv"
COLUMN = "label_"  # label_NAME is a column of numbers for the output NAME
# The names of the columns where the recipe does not give them, in lower case; the first one found is used.
PATH_COLUMNS = ("path", "filename", "file_name", "filepath", "file_path", "file", "image_path", "image", "img")
LABEL_COLUMNS = ("label", "labels", "class", "class_name", "category", "target", "tags")
DELIMITERS = (",", ";", "\t", "|")


@dataclass(frozen=True)
class Row:
    """One row: `path` as written, relative to `folder`; `label_column` is None where there is no such column."""

    place: str  # such as "photos.csv, line 3"
    folder: str
    path: str
    label_column: str | None
    cells: dict[str, Any]


@dataclass(frozen=True)
class _Columns:
    """The names of the columns that are read."""

    path: str
    label: str | None


def read_table(file: Path, config: Data, bad: list[str]) -> tuple[list[Row], list[str]]:
    """Return the rows of a file, and a sentence on its columns where they do not have their default names.

    What is wrong with a single row is added to `bad`. Raises `DataError` for content that does not match the suffix of
    the file.
    """
    reader = READERS.get(file.suffix.lower())
    if reader is None:
        raise DataError(f"manifest {file} has an unknown suffix; use {FORM}")
    rows: list[Row] = []
    columns: _Columns | None = None
    folder = os.path.dirname(file)  # noqa: PTH120 - no ./ before a path beside it
    try:
        for where, cells in reader(file, config):
            place = f"{file}, {where}"
            if isinstance(cells, RowError):
                bad.append(str(cells))
                continue
            if not isinstance(cells, dict):
                bad.append(f"{place} is {cells!r:.60}, not an object with path and label")
                continue
            columns = columns or _find_columns(list(cells), config, place=place)
            path = cells.get(columns.path)
            if not isinstance(path, str) or not path.strip():
                bad.append(f"{place} has no {columns.path}; it has {', '.join(map(str, cells)) or 'nothing'}")
                continue
            rows.append(Row(place, folder, path.strip(), columns.label, cells))
    except UnicodeDecodeError:
        raise DataError(f"manifest {file} is not UTF-8 text; save it as UTF-8") from None
    if columns is None:
        refuse(bad)
        raise DataError(f"manifest {file} has no rows; add one for each image, with path and label")
    return rows, _describe(columns, file, config)


def parse_json(text: str, place: str) -> Any:
    """Return the value of a JSON text; raises `RowError` that names its `place`."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RowError(f"{place} cannot be read as JSON ({error})") from None


def _read_csv(file: Path, config: Data) -> Iterator[tuple[str, Any]]:
    with file.open(encoding="utf-8-sig", newline="") as text:  # spreadsheets write a byte-order mark
        delimiter = config.delimiter or _find_delimiter(text.readline(), config)
        text.seek(0)
        reader = csv.DictReader(text, strict=True, skipinitialspace=True, delimiter=delimiter)
        try:
            names = list(reader.fieldnames or ())
            if not names:
                raise DataError(f"manifest {file} is empty; add a line with the names of its columns, then the rows")
            _find_columns(names, config, place=f"manifest {file}")
            if len(set(names)) < len(names):
                raise DataError(f"manifest {file} has repeated columns: {', '.join(names)}; give each its own name")
            for cells in reader:
                if None in cells or None in cells.values():
                    cells_wanted = counted(len(names), "cell")
                    message = f"{file}, line {reader.line_num} does not have {cells_wanted} like the first line"
                    yield f"line {reader.line_num}", RowError(message)
                else:
                    yield f"line {reader.line_num}", cells
        except csv.Error as error:
            raise DataError(f"manifest {file} cannot be read as CSV near line {reader.line_num} ({error})") from None


def _find_delimiter(first_line: str, config: Data) -> str:
    """Return the first delimiter that gives a path column in the first line, else the one that gives most columns."""
    found: dict[str, list[str]] = {}
    for delimiter in DELIMITERS:
        try:
            found[delimiter] = next(csv.reader([first_line], skipinitialspace=True, delimiter=delimiter), [])
        except csv.Error:
            found[delimiter] = []
    named = (delimiter for delimiter, names in found.items() if _choose(names, config.path_column, PATH_COLUMNS))
    return next(named, max(found, key=lambda delimiter: len(found[delimiter])))


def _read_json_lines(file: Path, _: Data) -> Iterator[tuple[str, Any]]:
    with file.open(encoding="utf-8-sig") as text:
        for number, line in enumerate(text, start=1):
            if line.strip():
                try:
                    yield f"line {number}", parse_json(line, f"{file}, line {number}")
                except RowError as error:
                    yield f"line {number}", error


def _read_json(file: Path, _: Data) -> Iterator[tuple[str, Any]]:
    table = parse_json(file.read_text(encoding="utf-8-sig"), f"manifest {file}")
    if not isinstance(table, list):
        raise DataError(f"manifest {file} contains {type(table).__name__}, not a list of objects with path and label")
    for number, cells in enumerate(table, start=1):
        yield f"entry {number}", cells


READERS: dict[str, Callable[[Path, Data], Iterator[tuple[str, Any]]]] = {
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".json": _read_json,
    ".jsonl": _read_json_lines,
}


def _find_columns(names: Sequence[str], config: Data, *, place: str) -> _Columns:
    seen = f"{place} has the columns {', '.join(map(str, names))}" if names else f"{place} has no columns"
    path = _choose(names, config.path_column, PATH_COLUMNS)
    if path is None and config.path_column is not None:
        raise DataError(f"{seen}, but no {config.path_column!r}, the value of data.path_column")
    if path is None:
        advice = "set data.path_column to the column with the paths, and data.delimiter to the separator of columns"
        raise DataError(f"{seen}, but none called path, filename or image; {advice}")
    label = _choose(names, config.label_column, LABEL_COLUMNS)
    if label is None and config.label_column is not None:
        raise DataError(f"{seen}, but no {config.label_column!r}, the value of data.label_column")
    has_numbers = any(str(name).startswith(COLUMN) and name != COLUMN for name in names)
    if label is None and (config.target == "class" or not has_numbers):
        raise DataError(f"{seen}, but none called label or class; set data.label_column to the column with the labels")
    if config.label_column is None and config.target != "class" and has_numbers and label != "label":
        label = None  # `class` may be an unrelated column beside label_NAME
    return _Columns(path, label)


def _choose(names: Iterable[str], requested: str | None, defaults: Sequence[str]) -> str | None:
    """Return the `requested` column, else the first of the `defaults`, whose case does not matter."""
    if requested is not None:
        return requested if requested in names else None
    found = {str(name).strip().lower(): name for name in reversed(list(names))}
    return next((found[name] for name in defaults if name in found), None)


def _describe(columns: _Columns, file: Path, config: Data) -> list[str]:
    found = []
    if columns.path not in (config.path_column, PATH_COLUMNS[0]):
        found.append(f"paths from column {columns.path!r}")
    if columns.label is not None and columns.label not in (config.label_column, LABEL_COLUMNS[0]):
        found.append(f"labels from column {columns.label!r}")
    return [f"{file}: reading {' and '.join(found)}"] if found else []
