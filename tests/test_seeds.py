"""Every draw of a run is a function of the seed and the place, fixed for good: the values below must never change."""

import pytest

from distrain.seeds import Purpose, derive_seed, permutation


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
