"""Collects the errors in the rows of a manifest, so that all of them are reported together."""

from collections.abc import Callable, Iterable
from typing import TypeVar

from distrain.errors import DataError
from distrain.messages import counted

T = TypeVar("T")
Result = TypeVar("Result")


class RowError(DataError):
    """One row that cannot be used; the message names its line."""


class BadRowsError(DataError):
    """All bad rows of a manifest, one sentence each; the message has the first one and the number of the others."""

    def __init__(self, sentences: list[str]) -> None:
        rest = len(sentences) - 1
        more = f"; {counted(rest, 'more row is', 'more rows are')} wrong, `distrain data check` lists them"
        super().__init__(f"{sentences[0]}{more if rest else ''}")
        self.sentences = sentences


def read_good(rows: Iterable[T], read: Callable[[T], Result], bad: list[str]) -> tuple[list[T], list[Result]]:
    """Return the rows that `read` accepts, and its results; its errors for the others are added to `bad`."""
    good, found = [], []
    for row in rows:
        try:
            result = read(row)
        except RowError as error:
            bad.append(str(error))
        else:
            good.append(row)
            found.append(result)
    return good, found


def refuse(bad: list[str]) -> None:
    """Raise `BadRowsError` where there are bad rows."""
    if bad:
        raise BadRowsError(bad)
