"""The user's own weights decide how often each sample is drawn, the same everywhere, or are refused."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from distrain.config import Data
from distrain.config.batching import solve_batching
from distrain.data.loading.epoch_order import build_sampler, weighted_order
from distrain.data.loading.sampler import Sampler, TrainSampler
from distrain.data.sources.registry import open_sources
from distrain.errors import RecipeError

HERE = "tests.data.loading.test_sample_weights"


def rare(targets: NDArray[np.int64], power: float = 1.0) -> NDArray[np.float64]:
    result: NDArray[np.float64] = (1 / np.bincount(targets))[targets] ** power
    return result


def first_only(targets: NDArray[np.int64], samples: list[str]) -> list[float]:
    targets[:] = 99  # a copy: the training keeps its own
    return [float(name == samples[0]) for name in samples]


def drawn(targets: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.random.rand(len(targets))


def too_few(targets: NDArray[np.int64]) -> list[float]:
    return [1.0]


def negative(targets: NDArray[np.int64]) -> NDArray[np.float64]:
    return -np.ones(len(targets))


def words(targets: NDArray[np.int64]) -> list[str]:
    return ["a"] * len(targets)


def sampler_of(function: str, **arguments: Any) -> tuple[Sampler, NDArray[np.int64]]:
    data = Data(source="digits", batch_size=24, sampling=f"{HERE}:{function}", sampling_arguments=arguments)
    source = open_sources(data)["train"]
    return build_sampler(data, source, seed=3), source.targets.numpy()


def test_each_sample_comes_as_often_as_its_weight_says() -> None:
    weights = np.array([0.0, 1.0, 2.0, 3.5, 0.5, 3.0])
    order = weighted_order(4, weights=weights, num_drawn=1000, seed=1)
    times = np.bincount(order.indices, minlength=6)
    expected = weights / weights.sum() * 1000
    assert (np.abs(times - expected) < 1).all()
    assert times.sum() == 1000
    assert order.copies is not None
    assert len(set(zip(order.indices.tolist(), order.copies.tolist(), strict=True))) == 1000
    again = weighted_order(4, weights=weights, num_drawn=1000, seed=1)
    assert np.array_equal(order.indices, again.indices)
    assert not np.array_equal(order.indices, weighted_order(5, weights=weights, num_drawn=1000, seed=1).indices)


@pytest.mark.parametrize("count", [1, 7, 1438, 50_000])
def test_equal_weights_give_each_sample_once(count: int) -> None:
    for epoch in range(5):
        order = weighted_order(epoch, weights=np.full(count, 0.1), num_drawn=count, seed=2)
        assert sorted(order.indices.tolist()) == list(range(count))


def test_chance_decides_which_samples_get_the_ceiling() -> None:
    weights = np.ones(10)
    times = sum(
        np.bincount(weighted_order(e, weights=weights, num_drawn=5, seed=0).indices, minlength=10) for e in range(400)
    )
    assert np.abs(np.asarray(times) - 200).max() < 60  # 6 standard deviations


def test_weights_of_the_targets_balance_the_classes() -> None:
    uneven = np.repeat([0, 1, 2], [700, 50, 251])
    for epoch in range(5):
        order = weighted_order(epoch, weights=rare(uneven), num_drawn=1001, seed=3)
        assert np.abs(np.bincount(uneven[order.indices]) - 1001 / 3).max() < 2


def test_arguments_of_the_recipe_go_to_the_function() -> None:
    sampler, targets = sampler_of("rare", power=1.0)
    assert np.bincount(sampler(0).indices).max() == 2
    weaker, _ = sampler_of("rare", power=0.0)
    assert sorted(weaker(0).indices.tolist()) == list(range(len(targets)))


def test_function_that_asks_for_samples_gets_their_names_and_cannot_change_the_targets() -> None:
    sampler, targets = sampler_of("first_only")
    assert set(sampler(0).indices.tolist()) == {0}
    assert targets.max() == 9


def test_random_weights_are_the_same_in_each_process() -> None:
    (one, _), (other, _) = sampler_of("drawn"), sampler_of("drawn")
    assert np.array_equal(one(2).indices, other(2).indices)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_samples_of_a_step_do_not_depend_on_the_world_size(world_size: int) -> None:
    sampler, targets = sampler_of("rare")
    ranks = [
        TrainSampler(
            num_samples=len(targets),
            sampler=sampler,
            batching=solve_batching(24, 4, world_size),
            drop_last=False,
            rank=r,
        )
        for r in range(world_size)
    ]
    read = sorted(i for rank in ranks for batch in rank.micro_batches([7]) for i in batch.indices.tolist())
    assert read == sorted(sampler(0).indices[7 * 24 : 8 * 24].tolist())


@pytest.mark.parametrize(
    ("function", "arguments", "expected"),
    [
        ("too_few", {}, ["returns an array [1]", "in too_few", "each of 1,438 samples"]),
        ("negative", {}, ["negative", "in negative"]),
        ("words", {}, ["returns ['a'", "not a number for each sample"]),
        ("rare", {"pwoer": 1}, ["cannot be called with (targets, **{pwoer: 1})"]),
        ("rrae", {}, ["has no 'rrae'", "did you mean rare?"]),
    ],
)
def test_what_gives_no_weights_is_refused(function: str, arguments: dict[str, Any], expected: list[str]) -> None:
    with pytest.raises(RecipeError) as caught:
        sampler_of(function, **arguments)
    assert all(word in str(caught.value) for word in expected), caught.value
