"""A terminal's screen: what is left to be read of the bytes that a program has written to it."""

import re
import unicodedata

_TOKEN = re.compile(r"\x1b\[([?0-9;]*)([A-Za-z])|[\x00-\x1f]|[^\x00-\x1f]", re.S)


class Screen:
    """An endless screen of some width, in which the cursor only moves as live lines and prints need it.

    Made narrower, it breaks its lines again as most terminals do, or cuts them off as xterm does; the cursor stays at
    the character where it stood.
    """

    def __init__(self, width: int, *, breaks_lines: bool = True) -> None:
        self.width = width
        self._breaks_lines = breaks_lines
        self._rows: list[list[str]] = [[]]
        self._continues: list[bool] = [False]  # whether a row continues the line of the row before
        self._row = self._column = 0

    @property
    def lines(self) -> list[str]:
        """The rows, without blanks at their ends; a line that was wrapped is two of them."""
        return ["".join(row).rstrip() for row in self._rows]

    @property
    def num_wrapped(self) -> int:
        """How many rows there are only because lines were too long."""
        return sum(self._continues)

    def feed(self, text: str) -> None:
        for match in _TOKEN.finditer(text):
            arguments, command, token = match[1], match[2], match[0]
            if command is not None:
                self._control(arguments, command)
            elif token == "\n":
                self._row, self._column = self._row + 1, 0 if self._column >= self.width else self._column
                if self._row == len(self._rows):
                    self._rows.append([])
                    self._continues.append(False)
            elif token == "\r":
                self._column = 0
            elif token >= " " and not unicodedata.combining(token):
                self._put(token)

    def resize(self, width: int) -> None:
        """Make it wider or narrower; rows that were wrapped before stay as they are."""
        self.width = width
        rows: list[list[str]] = []
        continues: list[bool] = []
        row, column = self._row, self._column
        for number, cells in enumerate(self._rows):
            pieces = [cells[start : start + width] for start in range(0, max(1, len(cells)), width)]
            kept = pieces if self._breaks_lines else pieces[:1]
            if number == self._row:
                place = min(self._column // width, len(kept) - 1)
                row, column = len(rows) + place, self._column - place * width
            rows += kept
            continues += [self._continues[number], *[True] * (len(kept) - 1)]
        self._rows, self._continues, self._row, self._column = rows, continues, row, min(column, width)

    def _put(self, character: str) -> None:
        if self._column >= self.width:
            self._row, self._column = self._row + 1, 0
            if self._row == len(self._rows):
                self._rows.append([])
                self._continues.append(False)
            self._continues[self._row] = True
        cells = self._rows[self._row]
        cells += [" "] * (self._column + 1 - len(cells))
        cells[self._column] = character
        self._column += 1

    def _control(self, arguments: str, command: str) -> None:
        if command == "J" and arguments in {"", "0"}:
            del self._rows[self._row][self._column :]
            del self._rows[self._row + 1 :]
            del self._continues[self._row + 1 :]
        elif command == "K":
            start = self._column if arguments in {"", "0"} else 0
            del self._rows[self._row][start:]
        elif command == "A":
            self._row = max(0, self._row - int(arguments or 1))
        else:
            assert command in "mhl", f"a control sequence that this screen does not know: {arguments}{command}"
