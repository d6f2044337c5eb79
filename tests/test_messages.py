"""Values and names are in messages on one line, as a recipe writes them, and not too long."""

import datetime
from typing import Any

import pytest

from distrain.messages import (
    MAX_VALUE,
    MEBIBYTE,
    byte_size,
    counted,
    did_you_mean,
    first_line,
    nearest,
    print_error,
    shown,
    type_and_first_line,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("digits", "digits"),
        ("", '""'),
        ("a\nb", r'"a\nb"'),
        (None, "null"),
        (True, "true"),
        (0.1, "0.1"),
        (float("nan"), ".nan"),
        ([0.5, "x"], "[0.5, x]"),
        ({"size": [2, 3]}, "{size: [2, 3]}"),
        (datetime.date(2024, 1, 2), "2024-01-02"),
        (object, "<class 'object'>"),
    ],
)
def test_value_is_shown_as_a_recipe_writes_it(value: Any, text: str) -> None:
    assert shown(value) == text


def test_long_value_is_cut() -> None:
    assert shown("x" * 100) == f"{'x' * (MAX_VALUE - 3)}..."
    assert shown(list(range(100))).startswith("[0, 1, 2, ")


def test_what_was_meant_is_a_question_or_nothing() -> None:
    assert nearest("cosin", ["cosine", "step"]) == "; did you mean cosine?"
    assert nearest("zzz", ["cosine", "step"]) == ""
    assert did_you_mean(["a", "b", "c"]) == "; did you mean a, b or c?"


def test_error_is_one_line_and_no_name_in_it_reaches_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    print_error("there is no run 'a\nb\x1b[31m\u2028\x00' here; Grüße, 日本")
    assert capsys.readouterr().err == "distrain: there is no run 'a\\nb\\x1b[31m\\u2028\\x00' here; Grüße, 日本\n"


def test_first_line_of_an_error_is_what_it_says_or_else_its_type() -> None:
    assert first_line(ValueError("\n  no such thing.\nmore of it")) == "no such thing"
    assert first_line(ValueError(" ")) == "ValueError"
    assert type_and_first_line(ValueError("no such thing.\nmore of it")) == "ValueError: no such thing"
    assert type_and_first_line(ValueError()) == "ValueError"


@pytest.mark.parametrize(("number", "words"), [(0, "0 steps"), (1, "1 step"), (12345, "12,345 steps")])
def test_nouns_agree_with_their_numbers(number: int, words: str) -> None:
    assert counted(number, "step") == words
    assert counted(1, "process", "processes") == "1 process"
    assert counted(2, "process", "processes") == "2 processes"


def test_sizes_from_a_gibibyte_on_are_told_in_it() -> None:
    assert [byte_size(size) for size in (0, 1023 * MEBIBYTE, 1024 * MEBIBYTE)] == ["0.0 MiB", "1023.0 MiB", "1.0 GiB"]
