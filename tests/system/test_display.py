"""Lines and tables drop columns on a narrow terminal, and none without a terminal."""

import pytest

from distrain.system.display import Column, Heading, Line, fitting, shortened, table_lines
from distrain.system.live_line import with_bar

LINE = Line(
    (
        Column("epoch 9/15", width=11),
        Column("step 207/345", 5),
        Column("loss 0.2965", 1),
        Column("", 1),
        Column("val loss 0.3195", 4),
        Column("top-1 99.44%", 2),
        Column("3,307 samples/s", 3),
    )
)


@pytest.mark.parametrize(
    ("width", "text"),
    [
        (None, "epoch 9/15  step 207/345  loss 0.2965  val loss 0.3195  top-1 99.44%  3,307 samples/s"),
        (86, "epoch 9/15  step 207/345  loss 0.2965  val loss 0.3195  top-1 99.44%  3,307 samples/s"),
        (85, "epoch 9/15  loss 0.2965  val loss 0.3195  top-1 99.44%  3,307 samples/s"),  # one cell is for epoch 10
        (60, "epoch 9/15  loss 0.2965  top-1 99.44%  3,307 samples/s"),
        (40, "epoch 9/15  loss 0.2965  top-1 99.44%"),
        (5, "epoch 9/15"),
    ],
)
def test_line_has_the_columns_of_the_lowest_ranks_that_fit(width: int | None, text: str) -> None:
    assert LINE.within(width) == text
    assert str(LINE) == LINE.within(None)


def test_column_that_is_too_wide_leaves_its_space_to_others() -> None:
    columns = [Column("run"), Column("much wider than this", 1), Column("99%", 2)]
    assert [column.text for column in fitting(columns, 8)] == ["run", "99%"]


def test_bar_fills_the_remaining_space_and_is_omitted_where_that_is_small() -> None:
    columns = [Column("epoch 1/2"), Column("step 3/4", 1)]
    assert with_bar(columns, 40, share=0.5) == "epoch 1/2  ━━━━━━━━━━─────────  step 3/4"
    assert with_bar(columns, 28, share=0.5) == "epoch 1/2  step 3/4"
    assert with_bar(columns, 30, share=2.0) == "epoch 1/2  ━━━━━━━━━  step 3/4"


HEADINGS = [Heading("run"), Heading("step", is_right=True), Heading("recipe", 2), Heading("differs in", 1)]
ROWS = [["digits-日本", "9/9", "digits", "optimizer.lr=0.1"], ["d", "120/345", "cifar10", ""]]


def test_table_drops_columns_and_truncates_no_cell() -> None:
    assert table_lines(HEADINGS, ROWS, None) == [
        "run             step  recipe   differs in",
        "digits-日本      9/9  digits   optimizer.lr=0.1",
        "d            120/345  cifar10",
    ]
    assert table_lines(HEADINGS, ROWS, 40) == [
        "run             step  differs in",
        "digits-日本      9/9  optimizer.lr=0.1",
        "d            120/345",
    ]
    assert table_lines(HEADINGS, ROWS, 10) == ["run             step", "digits-日本      9/9", "d            120/345"]


def test_text_in_the_last_column_is_wrapped_only_on_a_terminal() -> None:
    headings, rows = (
        [Heading("recipe"), Heading("what it trains", is_text=True)],
        [["digits", "seven words of text " * 2]],
    )
    assert table_lines(headings, rows, 30) == [
        "recipe  what it trains",
        "digits  seven words of text",
        "        seven words of text",
    ]
    assert table_lines(headings, rows, None)[1] == "digits  seven words of text seven words of text"


def test_shortened_text_fills_its_cells() -> None:
    assert shortened("日本語", 6) == "日本語"
    assert shortened("日本語", 5) == "日本…"
    assert shortened("epoch 1/2", 8) == "epoch 1…"
