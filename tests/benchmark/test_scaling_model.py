"""The scaling model against calculations by hand."""

import pytest

from distrain.benchmark.scaling_model import (
    Cost,
    Link,
    Machines,
    all_reduce_s,
    assumptions,
    fit_link,
    largest_of,
    predict,
    ring_s,
)

SLOW = Link(1e9, 0.001)
BYTES = 100_000_000
COST = Cost(image_s=0.001, backward_share=0.6, update_s=0.01, gradient_bytes=BYTES)


def test_ring_sends_its_parts_twice_around() -> None:
    assert ring_s(BYTES, 1, SLOW) == 0
    assert ring_s(BYTES, 2, SLOW) == pytest.approx(0.1 + 2 * 0.001)
    assert ring_s(BYTES, 4, SLOW) == pytest.approx(6 * 0.025 + 6 * 0.001)  # 6 messages of a quarter


def test_nodes_reduce_within_and_then_between_them() -> None:
    machines = Machines(per_node=4, inside=Link(1e10, 0.0), between=SLOW)
    assert all_reduce_s(BYTES, 4, machines) == pytest.approx(0.015)
    assert all_reduce_s(BYTES, 8, machines) == pytest.approx(0.015 + 0.1 + 0.002)
    assert all_reduce_s(BYTES, 8, Machines(per_node=4, inside=None, between=None)) == 0


@pytest.mark.parametrize(
    ("overlap", "exposed_s"),
    [
        (1.0, 0.156 - 0.06),  # 100 images: the backward pass takes 60 ms
        (0.5, 0.156 - 0.03),
        (0.0, 0.156),
    ],
)
def test_backward_pass_hides_a_part_of_the_reduction(overlap: float, exposed_s: float) -> None:
    cost = Cost(image_s=0.001, backward_share=0.6, update_s=0.01, gradient_bytes=BYTES, overlap=overlap)
    found = predict(cost, Machines(4, SLOW, None), processes=4, batch_size=400)
    assert found.exposed_s == pytest.approx(exposed_s)
    assert found.step_s == pytest.approx(0.11 + exposed_s)


def test_last_bucket_is_never_hidden() -> None:
    fast = Link(1e10, 0.0)
    found = predict(COST, Machines(4, fast, None), processes=4, batch_size=400)
    assert found.reduction_s == pytest.approx(0.015)  # less than the 60 ms of the backward pass
    assert found.exposed_s == pytest.approx(1.5 * 25 * 2**20 / 1e10)


def test_efficiency_is_against_the_whole_batch_or_a_single_share() -> None:
    step_s = 0.11 + 0.156 - 0.06
    strong = predict(COST, Machines(4, SLOW, None), processes=4, batch_size=400)
    weak = predict(COST, Machines(4, SLOW, None), processes=4, batch_size=400, is_weak=True)
    assert strong.efficiency == pytest.approx(0.41 / step_s / 4)
    assert weak.efficiency == pytest.approx(0.11 / step_s)
    assert strong.images_per_s == weak.images_per_s == pytest.approx(400 / step_s)
    assert predict(COST, Machines(4, SLOW, None), processes=1, batch_size=400).efficiency == pytest.approx(1)


@pytest.mark.parametrize(("count", "expected"), [(1, 0.0), (2, 0.5642), (10, 1.5388), (100, 2.5076)])
def test_largest_of_normal_values(count: int, expected: float) -> None:  # expected: tables of order statistics
    assert largest_of(count) == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize(
    ("cost", "machines", "words"),
    [
        (COST, Machines(4, Link(1e12, 0.0), None), "compute"),
        (COST, Machines(4, Link(1e8, 0.0), None), "communication"),
        (COST, Machines(4, Link(1e12, 0.0), None, input_images_per_s=500.0), "input"),
        (
            Cost(image_s=0.001, backward_share=0.6, update_s=0.01, gradient_bytes=BYTES, deviation_s=0.05, images=100),
            Machines(4, Link(1e12, 0.0), None),
            "stragglers",
        ),
    ],
)
def test_bottleneck_is_named(cost: Cost, machines: Machines, words: str) -> None:
    assert predict(cost, machines, processes=4, batch_size=400).bottleneck.startswith(words)


def test_loaders_of_a_node_feed_all_its_processes() -> None:
    machines = Machines(4, Link(1e12, 0.0), Link(1e12, 0.0), input_images_per_s=500.0)
    for processes in (4, 64):
        assert predict(COST, machines, processes=processes, batch_size=100 * processes).step_s == pytest.approx(0.8)


def test_link_is_recovered_from_the_times_of_its_rings() -> None:
    times = [(n, float(BYTES), ring_s(BYTES, n, SLOW), ring_s(0, n, SLOW)) for n in (2, 4)]
    found = fit_link(times)
    assert found.bandwidth == pytest.approx(SLOW.bandwidth)
    assert found.latency_s == pytest.approx(SLOW.latency_s)


def test_unknown_link_is_an_assumption() -> None:
    said = " ".join(assumptions(COST, Machines(4, SLOW, None)))
    assert "1.0 GB/s" in said
    assert "nothing is known of the link between nodes" in said
