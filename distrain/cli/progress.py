"""Shows the progress of a command that reads data."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress(title: str, total: int, *, unit: str = "images") -> Iterator[Callable[[], None]]:
    """Show a live line during the block if standard error is a terminal; yields a function that counts a unit."""
    from rich.console import Console

    from distrain.system.live_line import LiveProgress

    with LiveProgress(Console(stderr=True, highlight=False, soft_wrap=True), title, total, unit=unit) as shown:
        yield shown.advance
