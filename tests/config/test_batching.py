"""A global batch is split alike at every world size and assigned so that each sample is trained on once."""

import re

import pytest

from distrain.config.batching import Batching, solve_batching
from distrain.errors import RecipeError


def solvable() -> list[Batching]:
    return [
        Batching(micro * accumulation * world, micro, accumulation, world)
        for micro in (1, 2, 3, 8)
        for accumulation in (1, 2, 5)
        for world in (1, 2, 3, 4, 7)
    ]


@pytest.mark.parametrize("batching", solvable(), ids=str)
def test_each_sample_is_assigned_once_and_rank_0_is_never_idle(batching: Batching) -> None:
    for num_samples in range(1, batching.global_batch_size + 1):
        ranges = batching.split(num_samples)
        assert [i for start, stop in ranges for i in range(start, stop)] == list(range(num_samples))
        sizes = [stop - start for start, stop in ranges]
        assert max(sizes) - min(sizes) <= 1
        assert min(sizes) >= 1 and max(sizes) <= batching.micro_batch_size
        assigned = [batching.assign(len(ranges), rank) for rank in range(batching.world_size)]
        assert [index for indices in assigned for index in indices] == list(range(len(ranges)))
        assert len(assigned[0]) >= 1
        assert max(map(len, assigned)) <= batching.accumulation
        assert max(map(len, assigned)) - min(map(len, assigned)) <= 1


def test_full_batch_is_split_into_full_micro_batches_assigned_evenly() -> None:
    for batching in solvable():
        ranges = batching.split(batching.global_batch_size)
        assert {stop - start for start, stop in ranges} == {batching.micro_batch_size}
        assert {len(batching.assign(len(ranges), r)) for r in range(batching.world_size)} == {batching.accumulation}


def test_split_does_not_depend_on_the_world_size() -> None:
    for num_samples in range(1, 49):
        splits = [solve_batching(48, 4, world).split(num_samples) for world in (1, 2, 3, 4, 6, 12)]
        assert all(split == splits[0] for split in splits)


def test_solved_sizes_multiply_to_the_global_batch() -> None:
    assert solve_batching(64, None, 4) == Batching(64, 16, 1, 4)
    assert solve_batching(64, 8, 4) == Batching(64, 8, 2, 4)
    assert str(solve_batching(64, 8, 4)) == "global batch 64 = micro-batch 8 x accumulation 2 x 4 processes"
    assert str(solve_batching(64, None, 1)).endswith("x 1 process")


@pytest.mark.parametrize(("size", "world"), [(63, 2), (1, 2), (5, 64), (64, 3), (97, 8), (100, 7)])
def test_batch_that_does_not_divide_names_processes_and_a_size_that_do(size: int, world: int) -> None:
    with pytest.raises(RecipeError, match=f"data.batch_size={size} does not divide over {world} processes") as caught:
        solve_batching(size, None, world)
    text = str(caught.value)
    offered = re.search(r"use ([\d, or]+) process(es)?,", text)
    assert offered is not None
    for count in re.findall(r"\d+", offered[1]):
        assert solve_batching(size, None, int(count)).global_batch_size == size
    assert solve_batching(_suggested_batch_size(text), None, world).world_size == world


@pytest.mark.parametrize(("size", "micro", "world"), [(64, 24, 1), (64, 24, 2), (8, 16, 1), (4, 4, 3), (1000, 33, 8)])
def test_micro_batch_that_does_not_divide_names_a_size_that_does(size: int, micro: int, world: int) -> None:
    with pytest.raises(RecipeError, match=f"micro-batches of {micro}") as caught:
        solve_batching(size, micro, world)
    solved = solve_batching(_suggested_batch_size(str(caught.value)), micro, world)
    assert solved.micro_batch_size == micro
    assert solved.world_size == world


def test_one_process_is_told_in_the_singular() -> None:
    with pytest.raises(RecipeError, match=r"use 1 process, or --set data\.batch_size=2"):
        solve_batching(1, None, 2)
    with pytest.raises(RecipeError, match=r"train\.exact has 1 micro-batch of 8 for 2 processes; use 1 process, or"):
        solve_batching(8, 8, 2, is_exact=True)


def _suggested_batch_size(text: str) -> int:
    found = re.search(r"--set data\.batch_size=(\d+)", text)
    assert found is not None, text
    return int(found[1])
