"""A global batch is cut alike at every world size and dealt so that each sample is trained on once."""

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
def test_cut_and_deal_take_each_sample_once_and_leave_rank_0_never_idle(batching: Batching) -> None:
    for num_samples in range(1, batching.global_batch_size + 1):
        pieces = batching.cut(num_samples)
        assert [i for start, stop in pieces for i in range(start, stop)] == list(range(num_samples))
        sizes = [stop - start for start, stop in pieces]
        assert max(sizes) - min(sizes) <= 1
        assert min(sizes) >= 1 and max(sizes) <= batching.micro_batch_size
        hands = [batching.deal(len(pieces), rank) for rank in range(batching.world_size)]
        assert [piece for hand in hands for piece in hand] == list(range(len(pieces)))
        assert len(hands[0]) >= 1
        assert max(map(len, hands)) <= batching.accumulation
        assert max(map(len, hands)) - min(map(len, hands)) <= 1


def test_full_window_is_cut_into_whole_micro_batches_dealt_evenly() -> None:
    for batching in solvable():
        pieces = batching.cut(batching.global_batch_size)
        assert {stop - start for start, stop in pieces} == {batching.micro_batch_size}
        assert {len(batching.deal(len(pieces), r)) for r in range(batching.world_size)} == {batching.accumulation}


def test_cut_does_not_depend_on_the_world_size() -> None:
    for num_samples in range(1, 49):
        cuts = [solve_batching(48, 4, world).cut(num_samples) for world in (1, 2, 3, 4, 6, 12)]
        assert all(cut == cuts[0] for cut in cuts)


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
    offered = re.search(r"take ([\d, or]+) processes", text)
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


def _suggested_batch_size(text: str) -> int:
    found = re.search(r"--set data\.batch_size=(\d+)", text)
    assert found is not None, text
    return int(found[1])
