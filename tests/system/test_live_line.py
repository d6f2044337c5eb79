"""A live line stays one line whatever is printed, and however the terminal's width changes."""

import io
import sys

import pytest
from rich.console import Console
from rich.control import Control

from distrain.system.live_line import LiveLine, LiveProgress, erase_line
from tests.screen import Screen


class Drawn:
    """A console on a terminal, and the screen that shows its output."""

    def __init__(self, width: int, *, breaks_lines: bool = True) -> None:
        self._text = io.StringIO()
        self._read = 0
        self.screen = Screen(width, breaks_lines=breaks_lines)
        self.console = Console(file=self._text, force_terminal=True, width=width, soft_wrap=True, _environ={})

    @property
    def lines(self) -> list[str]:
        """The lines on the screen, without the blank one after the last."""
        text = self._text.getvalue()
        self.screen.feed(text[self._read :])
        self._read = len(text)
        lines = self.screen.lines
        return lines[:-1] if lines[-1] == "" else lines

    def redraw(self) -> None:
        self.console.print(Control())

    def resize(self, width: int) -> None:
        assert self.lines is not None
        self.screen.resize(width)
        self.console.width = width


def test_prints_are_above_the_line_and_the_line_is_erased_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    drawn = Drawn(40)
    live = LiveLine(drawn.console, lambda width: f"live {width}")
    live.start()
    print("the user prints")
    print("a part, ", end="", flush=True)
    print("x" * 50)
    drawn.redraw()
    assert drawn.lines == ["the user prints", "a part,", "x" * 40, "x" * 10, "live 39"]
    live.stop()
    live.stop()
    assert drawn.lines == ["the user prints", "a part,", "x" * 40, "x" * 10]
    assert type(sys.stdout).__name__ != "FileProxy"


@pytest.mark.parametrize("breaks_lines", [True, False])
def test_resize_leaves_no_remains_of_the_line(breaks_lines: bool) -> None:
    drawn = Drawn(120, breaks_lines=breaks_lines)
    drawn.console.print("printed before")
    live = LiveLine(drawn.console, lambda width: "=" * width)
    live.start()
    for width in (60, 25, 80, 20, 120):
        drawn.redraw()
        drawn.resize(width)
        drawn.redraw()
        assert drawn.lines == ["printed before", "=" * (width - 1)]
    live.stop()
    assert drawn.lines == ["printed before"]


def test_line_left_by_another_process_is_erased() -> None:
    drawn = Drawn(40)
    live = LiveLine(drawn.console, lambda _: "left behind")
    live.start()
    drawn.redraw()
    assert drawn.lines == ["left behind"]
    launcher = Console(file=drawn.console.file, force_terminal=True, width=40, record=True)
    erase_line(launcher)
    launcher.print("rank 1 failed")
    assert drawn.lines == ["rank 1 failed"]
    assert launcher.export_text() == "rank 1 failed\n"
    live.stop()


def test_nothing_is_drawn_once_the_terminal_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    text = io.StringIO()
    monkeypatch.setattr(text, "isatty", lambda: True)
    console = Console(file=text, width=40, _environ={"TERM": "xterm"})
    live = LiveLine(console, lambda _: "live")
    live.start()
    console.print("before")
    assert "live" in text.getvalue()
    monkeypatch.setattr(text, "isatty", lambda: False)
    text.truncate(0)
    text.seek(0)
    console.print("after")
    console.print(Control())
    live.stop()
    assert text.getvalue() == "after\n"


def test_nothing_is_drawn_without_a_terminal() -> None:
    console = Console(file=io.StringIO(), width=40)
    live = LiveLine(console, lambda _: "live")
    live.start()
    console.print("printed")
    erase_line(console)
    live.stop()
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue() == "printed\n"


@pytest.mark.parametrize(("width", "bar"), [(100, True), (26, False)])
def test_progress_shows_what_is_done_in_one_line(width: int, bar: bool) -> None:
    drawn = Drawn(width)
    with LiveProgress(drawn.console, "checking", 1200, unit="images") as progress:
        progress.advance(300)
        drawn.redraw()
        (line,) = drawn.lines
    assert line.startswith("checking  ")
    assert "300/1,200" in line
    assert ("━" in line) is bar
    assert ("images/s" in line) is bar
    assert drawn.lines == []
