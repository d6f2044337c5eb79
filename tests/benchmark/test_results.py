import pytest

from distrain.benchmark.results import spread
from distrain.messages import MEBIBYTE
from tests.benchmark.factories import reduction


def test_spread_of_blocks_gives_the_deviation_of_a_step() -> None:
    found = spread([1.0, 2.0, 3.0, 4.0, 5.0], steps=4)
    assert (found.lower, found.median, found.upper) == (2, 3, 4)
    assert found.deviation == pytest.approx(1 / 0.6745 * 2, rel=1e-3)  # the mean of 4 steps deviates half as much


def test_bandwidth_of_a_link_of_the_ring() -> None:
    assert reduction().bus_bandwidth(2) == pytest.approx(44 * MEBIBYTE / 0.05)
    assert reduction().bus_bandwidth(4) == pytest.approx(1.5 * 44 * MEBIBYTE / 0.05)
