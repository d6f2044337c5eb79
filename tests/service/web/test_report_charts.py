"""Charts of a report have round ticks, and survive values that are equal, huge, missing or not finite."""

import math

import pytest

from distrain.service.web.report.charts import Line, draw_chart, linear_ticks


def line(values: list[float]) -> Line:
    return Line("a", list(range(len(values))), values, values, values)


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0.29, 2.31, [0, 0.5, 1, 1.5, 2, 2.5]),
        (1, 345, [0, 100, 200, 300, 400]),
        (-3, 3, [-4, -2, 0, 2, 4]),
    ],
)
def test_ticks_are_round_and_enclose_the_values(low: float, high: float, ticks: list[float]) -> None:
    assert linear_ticks(low, high) == pytest.approx(ticks)


@pytest.mark.parametrize(
    "values",
    [
        [0.5],
        [0.0, 0.0],
        [1.0, 1.0 + 2e-16],
        [1e-320, 2e-320],
        [math.nan, 1.0, math.inf, 2.0, -math.inf],
        [1e308, -1e308, 3.0],
        [-5e99, 5e99],
    ],
)
def test_any_values_are_drawn_inside_the_plot(values: list[float]) -> None:
    chart = draw_chart("a", [line(values)], metric="x")
    assert chart is not None
    assert all(-1e-9 <= tick.share <= 1 + 1e-9 for tick in (*chart.x_ticks, *chart.y_ticks))
    numbers = chart.lines[0].path.replace("L", " ").replace("M", " ").split()
    assert numbers
    assert all(0 <= float(number) <= 1000 for number in numbers)


@pytest.mark.parametrize("values", [[1.0, 1.0], [0.93, 0.99, 1.0]])
def test_axis_of_percentages_ends_at_100_percent(values: list[float]) -> None:
    chart = draw_chart("a", [line(values)], metric="val/top5")
    assert chart is not None
    assert chart.y_ticks[-1].text == "100%"


def test_value_that_is_not_finite_is_a_gap_and_the_newest_value_is_shown_as_it_is() -> None:
    chart = draw_chart("a", [line([1.0, math.nan, 3.0, math.nan])], metric="val/loss")
    assert chart is not None
    assert chart.lines[0].path.count("M") == 2
    assert chart.lines[0].last == "nan"
    assert draw_chart("a", [line([math.nan])], metric="x") is None


def test_loss_over_several_orders_of_magnitude_has_a_logarithmic_scale() -> None:
    chart = draw_chart("a", [line([10.0, 1.0, 0.01])], metric="train/loss")
    assert chart is not None
    assert chart.note == "logarithmic scale"
    assert [tick.text for tick in chart.y_ticks] == ["0.01", "0.1", "1", "10"]
    assert chart.lines[0].path == "M0 0L500 333.3L1000 1000"


def test_means_have_a_band_of_the_values_that_they_are_the_mean_of() -> None:
    chart = draw_chart("a", [Line("a", [0, 1], [1.0, 2.0], [0.0, 1.0], [2.0, 4.0])], metric="x")
    assert chart is not None
    assert chart.lines[0].band == "M0 500L1000 0L1000 750L0 1000Z"
