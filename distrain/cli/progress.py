"""Owns the bar that shows how far a long look at data is."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

REDRAWN_EVERY_S = 0.1


@contextmanager
def progress(words: str, total: int, *, unit: str = "images") -> Iterator[Callable[[], None]]:
    """Show a bar on standard error while the block runs, if that is a terminal; yields what counts one unit."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, highlight=False)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    begin = drawn = time.monotonic()
    count = 0
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(words, total=total, rate="")

        def advance() -> None:
            nonlocal count, drawn
            count += 1
            now = time.monotonic()
            if now - drawn > REDRAWN_EVERY_S:
                drawn = now
                bar.update(task, completed=count, rate=f"{count / (now - begin):,.0f} {unit}/s")

        yield advance
