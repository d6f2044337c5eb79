"""Every draw of a run is a function of the seed and the place, fixed for good: the values below must never change."""

import numpy as np
import pytest

from distrain.rng import Purpose, derive_keys, derive_seed, permutation, uniform


@pytest.mark.parametrize(
    ("seed", "epoch", "expected"),
    [
        (0, 0, [8, 9, 2, 5, 6, 3, 0, 7, 1, 4]),
        (42, 1, [4, 6, 2, 5, 7, 0, 3, 8, 1, 9]),
        (2**63 - 1, 5, [5, 8, 7, 3, 0, 9, 1, 6, 4, 2, 10, 11]),
    ],
)
def test_permutation_never_changes_with_a_version(seed: int, epoch: int, expected: list[int]) -> None:
    assert permutation(seed, epoch, len(expected)).tolist() == expected


@pytest.mark.parametrize("num_samples", [1, 2, 17, 1000])
def test_permutation_holds_every_sample_once(num_samples: int) -> None:
    assert sorted(permutation(7, 3, num_samples).tolist()) == list(range(num_samples))


def test_permutation_differs_by_epoch_and_by_seed() -> None:
    orders = {tuple(permutation(seed, epoch, 1000).tolist()) for seed in range(10) for epoch in range(10)}
    assert len(orders) == 100


def test_derived_seeds_never_change_with_a_version() -> None:
    assert [derive_seed(0, purpose) for purpose in Purpose] == [
        313702574736366215,
        7774984521324166428,
        7208058654680435264,
        1085863262479677830,
        2258966835411846142,
        4607534880468987447,
        3629814277340124659,
        8233872102762199186,
        5208651193958934271,
        6685146180142555752,
        4551644272853024300,
    ]
    assert derive_seed(0, Purpose.SAMPLE, 1, 2) == 5154947186040965512
    assert derive_seed(0, Purpose.SAMPLE, 2, 1) == 1712428814379386864
    assert derive_seed(2**63 - 1, Purpose.ORDER, 3) == 3278810536288764951


def test_seeds_of_other_seeds_purposes_and_places_differ() -> None:
    seeds = [
        derive_seed(seed, purpose, a, b)
        for seed in range(5)
        for purpose in Purpose
        for a in range(30)
        for b in range(30)
    ]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_keys_of_many_places_are_those_of_each_place_alone() -> None:
    samples = [0, 5, 2**40]
    keys = derive_keys(3, Purpose.AUGMENT, 2, np.array(samples), 1)
    assert keys.tolist()[0] == 14053275273191137654
    assert [int(key) >> 1 for key in keys] == [derive_seed(3, Purpose.AUGMENT, 2, sample, 1) for sample in samples]


def test_uniform_numbers_never_change_with_a_version_and_fill_the_unit_interval() -> None:
    keys = derive_keys(3, Purpose.AUGMENT, np.arange(20_000))
    numbers = uniform(derive_keys(3, Purpose.AUGMENT, 2, np.array([0, 5]), 1), 2)
    assert numbers.tolist() == [[0.9162630749779164, 0.6699151607795096], [0.6850576617599231, 0.3071129374766165]]
    first, second = uniform(keys, 2).T
    for drawn in (first, second):
        counts = np.histogram(drawn, bins=20, range=(0, 1))[0]
        assert counts.sum() == 20_000
        assert abs(counts - 1000).max() < 5 * 1000**0.5
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.03
