"""Lays out what a terminal shows: lines and tables that give up columns where it is narrow, and durations.

What is no terminal has no width: a pipe or a file gets every column, untruncated.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TextIO

from rich.cells import cell_len
from rich.console import Console

GAP = 2  # cells between two columns
_MIN_TEXT = 20  # cells that a wrapped text is given at least
_ELLIPSIS = "…"


def duration(seconds: float) -> str:
    """Return a time in at most two units, such as `3 h 20 min`."""
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest_s = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest_s} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def console_width(console: Console) -> int | None:
    """Return the cells of a line of the terminal that a console prints to; None where it is none."""
    return console.width if console.is_terminal else None


def stream_width(stream: TextIO) -> int | None:
    """Return the cells of a line of the terminal that `stream` writes to; None where it is none."""
    return Console(file=stream).width if stream.isatty() else None


@dataclass(frozen=True)
class Column:
    """One column of a line. A narrow line has those of the lowest ranks that fit, and always those of rank 0.

    `width` cells are reserved for it, so that a line does not change its columns when a number grows.
    """

    text: str
    rank: int = 0
    width: int = 0

    @property
    def cells(self) -> int:
        """The cells that the column is given."""
        return max(cell_len(self.text), self.width)


@dataclass(frozen=True)
class Line:
    """One line of text in columns; as a string it is the whole line."""

    columns: tuple[Column, ...]

    def __str__(self) -> str:
        return self.within(None)

    def within(self, width: int | None) -> str:
        """Return the columns that `width` cells hold, all of them for None; those of rank 0 may be wider than that."""
        return (" " * GAP).join(column.text for column in fitting(self.columns, width))


def fitting(columns: Sequence[Column], width: int | None) -> list[Column]:
    """Return the columns that fit in `width` cells together, in their order; empty ones are left out."""
    texts = [number for number, column in enumerate(columns) if column.text]
    shown, taken = set[int](), -GAP
    for number in sorted(texts, key=lambda number: columns[number].rank):
        cells = columns[number].cells + GAP
        if width is None or columns[number].rank == 0 or taken + cells <= width:
            shown.add(number)
            taken += cells
    return [columns[number] for number in texts if number in shown]


def bar(share: float, width: int) -> str:
    """Return a bar of `width` cells of which `share`, 0 to 1, is filled."""
    filled = round(min(max(share, 0.0), 1.0) * width)
    return "━" * filled + "─" * (width - filled)


@dataclass(frozen=True)
class Heading:
    """A column of a table: its title, its rank as in `Column`, and how its cells are set."""

    title: str
    rank: int = 0
    is_right: bool = False  # numbers
    is_text: bool = False  # the last column: words, which are wrapped in a terminal


def table_lines(headings: Sequence[Heading], rows: Sequence[Sequence[str]], width: int | None) -> list[str]:
    """Return a table as lines, the headings first, without the columns for which `width` cells are too few."""
    columns = [
        Column(heading.title or " ", heading.rank, _needed(number, heading, rows))
        for number, heading in enumerate(headings)
    ]
    kept = fitting(columns, width)
    shown = [number for number, column in enumerate(columns) if any(column is other for other in kept)]
    lines: list[str] = []
    for row in ([heading.title for heading in headings], *rows):
        cells = [_set(row[number], headings[number], columns[number].cells) for number in shown]
        last = headings[shown[-1]]
        start = sum(cell_len(cell) + GAP for cell in cells[:-1])
        if last.is_text and width is not None and start + cell_len(row[shown[-1]]) > width:
            pieces = textwrap.wrap(row[shown[-1]], max(_MIN_TEXT, width - start)) or [""]
        else:
            pieces = [cells[-1]]
        lines.append((" " * GAP).join([*cells[:-1], pieces[0]]).rstrip())
        lines += [" " * start + piece for piece in pieces[1:]]
    return lines


def print_table(console: Console, headings: Sequence[Heading], rows: Sequence[Sequence[str]]) -> None:
    """Print a table in the columns that the terminal has room for."""
    header, *lines = table_lines(headings, rows, console_width(console))
    console.print(header, style="bold", markup=False, soft_wrap=True)
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


def shortened(text: str, width: int) -> str:
    """Return a text of at most `width` cells, its end cut off where it is longer."""
    while cell_len(text) > width:
        text = text.removesuffix(_ELLIPSIS)[:-1] + _ELLIPSIS
    return text


def _needed(number: int, heading: Heading, rows: Sequence[Sequence[str]]) -> int:
    if heading.is_text:
        return _MIN_TEXT
    return max((cell_len(row[number]) for row in rows), default=0)


def _set(text: str, heading: Heading, width: int) -> str:
    padding = " " * (width - cell_len(text))
    return f"{padding}{text}" if heading.is_right else f"{text}{padding}"
