"""Prints the comparison of runs as tables: a row for each key, a column for each run."""

from collections.abc import Mapping, Sequence

from rich.console import Console

from distrain.runs.comparison import Comparison, find_best_columns
from distrain.runs.value_formats import format_key
from distrain.system.display import GAP, Heading, console_width, print_table, shortened

_MAX_CELLS = 40  # width of a value on a terminal


def print_comparison(console: Console, comparison: Comparison) -> None:
    """Print the runs with a number each, and tables with a column for each number; wide ones in several parts."""
    for number, overview in enumerate(comparison.runs, start=1):
        console.print(f"{number:>2}  {overview.name}", markup=False, soft_wrap=True)
    for title, rows in (("recipe", comparison.recipe), ("environment", comparison.environment)):
        if rows:
            _print_rows(console, title, {key: [format_key(key, value) for value in row] for key, row in rows.items()})
        else:
            console.print(f"\nno differences in the {title}", markup=False)
    marked = {}
    for key, row in comparison.metrics.items():
        best = find_best_columns(key, row, comparison.own_metrics)
        marked[key] = [format_key(key, value) + (" *" if number in best else "") for number, value in enumerate(row)]
    _print_rows(console, "metrics (* best)", marked)


def _print_rows(console: Console, title: str, rows: Mapping[str, Sequence[str]]) -> None:
    width = console_width(console)
    if width is not None:
        rows = {key: [shortened(cell, _MAX_CELLS) for cell in row] for key, row in rows.items()}
    for part in _parts(title, rows, width):
        console.print()
        headings = [Heading(title), *(Heading(str(number + 1)) for number in part)]
        print_table(console, headings, [[key, *(row[number] for number in part)] for key, row in rows.items()])


def _parts(title: str, rows: Mapping[str, Sequence[str]], width: int | None) -> list[list[int]]:
    """Return the columns that fit beside each other on the terminal, at least one in each part."""
    first = max(map(len, (title, *rows)))
    parts, used = [list[int]()], first
    for number in range(len(next(iter(rows.values())))):
        cells = GAP + max(len(row[number]) for row in rows.values())
        if width is not None and parts[-1] and used + cells > width:
            parts.append([])
            used = first
        parts[-1].append(number)
        used += cells
    return parts
