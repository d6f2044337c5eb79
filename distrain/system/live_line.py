"""Redraws one line in place at the bottom of a terminal; whatever else is printed goes above it."""

import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self, TextIO, cast

from rich.console import Console, ConsoleRenderable, RenderHook
from rich.control import Control
from rich.file_proxy import FileProxy
from rich.segment import ControlType, Segment, Segments

from distrain.system.display import GAP, Column, Line, bar, duration, fitting, shortened
from distrain.system.loop_guard import LoopGuard

REFRESHES_PER_S = 4
_MIN_BAR, _MAX_BAR = 8, 40  # cells
_ERASE = Segment("\r\x1b[J", None, [(ControlType.CARRIAGE_RETURN,)])  # this line, and everything below it


class LiveLine(RenderHook):
    """The line that `draw` returns for a width in cells, drawn four times a second; nothing without a terminal.

    The cursor stays at the beginning of the line. A terminal that is made narrower may wrap the line, so everything
    from the cursor on is erased before the line is drawn again.
    """

    def __init__(self, console: Console, draw: Callable[[int], str]) -> None:
        self._console = console
        self._draw = draw
        self._is_shown = False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="distrain-live-line", daemon=True)
        self._streams: dict[str, TextIO] = {}

    def start(self) -> None:
        """Begin to draw; from now on everything printed to the standard streams goes above the line."""
        if not self._console.is_terminal or self._console.is_dumb_terminal:
            return
        self._is_shown = True
        self._console.show_cursor(False)  # noqa: FBT003 - rich's signature
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if stream.isatty() and not isinstance(stream, FileProxy):  # output to a file is not changed
                self._streams[name] = stream
                setattr(sys, name, cast("TextIO", FileProxy(self._console, stream)))
        self._console.push_render_hook(self)
        self._thread.start()

    def stop(self) -> None:
        """Remove the line and restore the terminal; a second call does nothing."""
        if not self._is_shown:
            return
        self._is_shown = False
        self._over.set()
        self._thread.join()
        for name, stream in self._streams.items():
            if isinstance(proxy := getattr(sys, name), FileProxy):  # else the terminal is gone, and the stream restored
                proxy.flush()
                setattr(sys, name, stream)
        self._console.pop_render_hook()
        erase_line(self._console)

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        """Erase the line, print, and draw the line again; rich calls this at every print."""
        if not self._console.is_terminal:  # the terminal is gone: prints go to a log, and the line is not drawn
            return renderables
        width = self._console.width - 1  # some terminals start a new line once the last cell is written
        line = Segment(shortened(self._draw(width), width))
        return [Segments([_ERASE]), *renderables, Segments([line]), Control(ControlType.CARRIAGE_RETURN)]

    def _run(self) -> None:
        guard = LoopGuard("drawing the live line")
        while not self._over.wait(1 / REFRESHES_PER_S):
            with guard:
                self._console.print(Control())


class LiveProgress:
    """A live line for work of known length: a title, a bar, the progress, and the time left."""

    def __init__(self, console: Console, title: str, total: int | None, *, unit: str = "") -> None:
        """Create a line for `total` of `unit`, with their rate; without a unit it shows a percentage.

        With a total of None, which is unknown, there is neither a bar nor the time left.
        """
        self.completed = 0
        self._title = title
        self._total = total
        self._unit = unit
        self._began_s = time.monotonic()
        self._line = LiveLine(console, self._draw)

    def __enter__(self) -> Self:
        self._line.start()
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self._line.stop()

    def advance(self, count: int = 1) -> None:
        """Add to the completed count."""
        self.completed += count

    def _draw(self, width: int) -> str:
        done, total, took_s = self.completed, self._total, time.monotonic() - self._began_s
        rate = f"{done / took_s:,.0f} {self._unit}/s" if done and self._unit else ""
        if total is None:
            return Line((Column(self._title), Column(f"{done:,}"), Column(rate, 2))).within(width)
        share = done / max(1, total)
        eta = f"ETA {duration((total - done) * took_s / done)}" if done else ""
        count = f"{done:,}/{total:,}" if self._unit else f"{share:.0%}"
        return with_bar([Column(self._title), Column(count), Column(rate, 2), Column(eta, 1)], width, share=share)


def with_bar(columns: list[Column], width: int, *, share: float) -> str:
    """Return the columns that fit in `width` cells, with a bar after the first of them where there is space for it."""
    shown = fitting(columns, width)
    texts = [column.text for column in shown]
    left = width - sum(column.cells + GAP for column in shown)
    if left >= _MIN_BAR:
        texts.insert(1, bar(share, min(left, _MAX_BAR)))
    return (" " * GAP).join(texts)


def erase_line(console: Console) -> None:
    """Erase a live line that another process may have left, and show the cursor, if this is a terminal."""
    console.print(Segments([_ERASE]))
    console.show_cursor()
