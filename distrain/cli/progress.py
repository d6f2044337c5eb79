"""Shows how far a long look at data is."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress(words: str, total: int, *, unit: str = "images") -> Iterator[Callable[[], None]]:
    """Show a live line on standard error while the block runs, if that is a terminal; yields what counts one unit."""
    from rich.console import Console

    from distrain.system.live_line import LiveProgress

    with LiveProgress(Console(stderr=True, highlight=False, soft_wrap=True), words, total, unit=unit) as shown:
        yield shown.advance
