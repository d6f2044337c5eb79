"""Formats lines and tables, which drop columns on a narrow terminal, and durations.

Only a terminal has a width: a pipe or a file gets every column, untruncated.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TextIO

from rich.cells import cell_len
from rich.console import Console

GAP = 2  # cells between two columns
_MIN_TEXT = 20  # minimum width of a wrapped text in cells
_ELLIPSIS = "…"


def duration(seconds: float) -> str:
    """Return a duration in at most two units, such as `3 h 20 min`."""
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest_s = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest_s} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def console_width(console: Console) -> int | None:
    """Return the width in cells of the terminal that a console prints to; None where it is not a terminal."""
    return console.width if console.is_terminal else None


def stream_width(stream: TextIO) -> int | None:
    """Return the width in cells of the terminal that `stream` writes to; None where it is not a terminal."""
    return Console(file=stream).width if stream.isatty() else None


@dataclass(frozen=True)
class Column:
    """One column of a line. A narrow line shows the columns of the lowest ranks that fit, and always those of rank 0.

    At least `width` cells are reserved for it, so that a line keeps its columns when a number grows.
    """

    text: str
    rank: int = 0
    width: int = 0

    @property
    def cells(self) -> int:
        """The width of the column in cells."""
        return max(cell_len(self.text), self.width)


@dataclass(frozen=True)
class Line:
    """A line of text in columns; `str` gives all of them."""

    columns: tuple[Column, ...]

    def __str__(self) -> str:
        return self.within(None)

    def within(self, width: int | None) -> str:
        """Return the columns that fit in `width` cells, all of them for None; those of rank 0 may exceed the width."""
        return (" " * GAP).join(column.text for column in fitting(self.columns, width))


def fitting(columns: Sequence[Column], width: int | None) -> list[Column]:
    """Return the columns that together fit in `width` cells, in their order; empty ones are omitted."""
    texts = [number for number, column in enumerate(columns) if column.text]
    shown, used = set[int](), -GAP
    for number in sorted(texts, key=lambda number: columns[number].rank):
        cells = columns[number].cells + GAP
        if width is None or columns[number].rank == 0 or used + cells <= width:
            shown.add(number)
            used += cells
    return [columns[number] for number in texts if number in shown]


def bar(share: float, width: int) -> str:
    """Return a bar of `width` cells, filled to `share`, 0 to 1."""
    filled = round(min(max(share, 0.0), 1.0) * width)
    return "━" * filled + "─" * (width - filled)


@dataclass(frozen=True)
class Heading:
    """A column of a table: its title, its rank as in `Column`, and the alignment of its cells."""

    title: str
    rank: int = 0
    is_right: bool = False  # numbers
    is_text: bool = False  # the last column: text, which is wrapped on a terminal


def table_lines(headings: Sequence[Heading], rows: Sequence[Sequence[str]], width: int | None) -> list[str]:
    """Return a table as lines, the headings first, without the columns that do not fit in `width` cells."""
    columns = [
        Column(heading.title or " ", heading.rank, _min_width(number, heading, rows))
        for number, heading in enumerate(headings)
    ]
    widths = [column.cells for column in columns]
    kept = fitting(columns, width)
    shown = [number for number, column in enumerate(columns) if any(column is other for other in kept)]
    lines: list[str] = []
    for row in ([heading.title for heading in headings], *rows):
        cells = [_aligned(row[number], headings[number], widths[number]) for number in shown]
        wrapped = [cells[-1]]
        if width is not None and headings[shown[-1]].is_text:
            start = sum(cell_len(cell) + GAP for cell in cells[:-1])
            if start + cell_len(row[shown[-1]]) > width:
                wrapped = textwrap.wrap(row[shown[-1]], max(_MIN_TEXT, width - start)) or [""]
        lines.append((" " * GAP).join([*cells[:-1], wrapped[0]]).rstrip())
        lines += [" " * start + text for text in wrapped[1:]]
    return lines


def print_table(console: Console, headings: Sequence[Heading], rows: Sequence[Sequence[str]]) -> None:
    """Print a table with the columns that fit on the terminal."""
    header, *lines = table_lines(headings, rows, console_width(console))
    console.print(header, style="bold", markup=False, soft_wrap=True)
    if lines:
        console.print("\n".join(lines), markup=False, emoji=False, soft_wrap=True)


def shortened(text: str, width: int) -> str:
    """Return a text truncated to at most `width` cells."""
    while cell_len(text) > width:
        text = text.removesuffix(_ELLIPSIS)[:-1] + _ELLIPSIS
    return text


def _min_width(number: int, heading: Heading, rows: Sequence[Sequence[str]]) -> int:
    if heading.is_text:
        return _MIN_TEXT
    return max(map(cell_len, {row[number] for row in rows}), default=0)


def _aligned(text: str, heading: Heading, width: int) -> str:
    width -= cell_len(text) - len(text)
    return text.rjust(width) if heading.is_right else text.ljust(width)
