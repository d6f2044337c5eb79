"""Draws one line at the bottom of a terminal, again and again in place; whatever is printed meanwhile goes above it."""

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
_ERASE = Segment("\r\x1b[J", None, [(ControlType.CARRIAGE_RETURN,)])  # this line, and all that is below it


class LiveLine(RenderHook):
    """The line that `draw` returns for a width in cells, drawn four times a second; nothing where there is no terminal.

    The cursor waits at the beginning of the line. A terminal that is made narrower may break the line in two, and all
    from the cursor on is erased before the next drawing: nothing of it stays.
    """

    def __init__(self, console: Console, draw: Callable[[int], str]) -> None:
        self._console = console
        self._draw = draw
        self._is_shown = False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="distrain-live-line", daemon=True)
        self._streams: dict[str, TextIO] = {}

    def start(self) -> None:
        """Begin to draw; from now on what is printed to the standard streams goes above the line."""
        if not self._console.is_terminal or self._console.is_dumb_terminal:
            return
        self._is_shown = True
        self._console.show_cursor(False)  # noqa: FBT003 - rich's signature
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if stream.isatty() and not isinstance(stream, FileProxy):  # what goes to a file stays bare
                self._streams[name] = stream
                setattr(sys, name, cast("TextIO", FileProxy(self._console, stream)))
        self._console.push_render_hook(self)
        self._thread.start()

    def stop(self) -> None:
        """Remove the line and leave the terminal as it was; a second call does nothing."""
        if not self._is_shown:
            return
        self._is_shown = False
        self._over.set()
        self._thread.join()
        for name, stream in self._streams.items():
            if isinstance(proxy := getattr(sys, name), FileProxy):  # else the terminal is gone, and it is back already
                proxy.flush()
                setattr(sys, name, stream)
        self._console.pop_render_hook()
        erase_line(self._console)

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        """Erase the line before what is printed, and draw it again behind that: rich calls it at every print."""
        if not self._console.is_terminal:  # it was lost meanwhile: what is printed goes to a log, and the line nowhere
            return renderables
        width = self._console.width - 1  # some terminals begin a new line once the last cell is written
        line = Segment(shortened(self._draw(width), width))
        return [Segments([_ERASE]), *renderables, Segments([line]), Control(ControlType.CARRIAGE_RETURN)]

    def _run(self) -> None:
        guard = LoopGuard("drawing the live line")
        while not self._over.wait(1 / REFRESHES_PER_S):
            with guard:
                self._console.print(Control())


class LiveProgress:
    """A live line for work of known length: what it is, a bar, how much is done, and the time left."""

    def __init__(self, console: Console, words: str, total: int | None, *, unit: str = "") -> None:
        """Make a line for `total` of `unit`, whose rate is shown; without a unit it shows the share in percent.

        A total of None is not known yet: there is no bar then, and no time left.
        """
        self.completed = 0
        self._words = words
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
        """Count what is done."""
        self.completed += count

    def _draw(self, width: int) -> str:
        done, total, took_s = self.completed, self._total, time.monotonic() - self._began_s
        rate = f"{done / took_s:,.0f} {self._unit}/s" if done and self._unit else ""
        if total is None:
            return Line((Column(self._words), Column(f"{done:,}"), Column(rate, 2))).within(width)
        share = done / max(1, total)
        left = f"ETA {duration((total - done) * took_s / done)}" if done else ""
        count = f"{done:,}/{total:,}" if self._unit else f"{share:.0%}"
        return with_bar([Column(self._words), Column(count), Column(rate, 2), Column(left, 1)], width, share=share)


def with_bar(columns: list[Column], width: int, *, share: float) -> str:
    """Return the columns that fit in `width` cells, with a bar behind the first of them where there is room for one."""
    shown = fitting(columns, width)
    texts = [column.text for column in shown]
    left = width - sum(column.cells + GAP for column in shown)
    if left >= _MIN_BAR:
        texts.insert(1, bar(share, min(left, _MAX_BAR)))
    return (" " * GAP).join(texts)


def erase_line(console: Console) -> None:
    """Erase a live line that another process may have left behind, and show the cursor, where this is a terminal."""
    console.print(Segments([_ERASE]))
    console.show_cursor()
