"""The order of samples is a function of (seed, epoch, position), whatever the world size and wherever a run resumes."""

from functools import partial

import numpy as np
import pytest

from distrain.config.batching import solve_batching
from distrain.data.loading.epoch_order import uniform_order
from distrain.data.loading.sampler import TrainSampler, evaluation_order
from distrain.errors import RecipeError


def train_order(world_size: int, rank: int, *, drop_last: bool = False) -> TrainSampler:
    batching = solve_batching(24, 2, world_size)
    sampler = partial(uniform_order, num_samples=101, seed=3)
    return TrainSampler(num_samples=101, sampler=sampler, batching=batching, drop_last=drop_last, rank=rank)


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 6, 12])
def test_micro_batches_are_the_same_at_every_world_size(world_size: int, drop_last: bool) -> None:
    alone = train_order(1, 0, drop_last=drop_last)
    steps = 2 * alone.steps_per_epoch
    ranks = [train_order(world_size, rank, drop_last=drop_last) for rank in range(world_size)]
    for step in range(steps):
        expected = [batch.indices.tolist() for batch in alone.micro_batches(range(step, step + 1))]
        dealt = [batch.indices.tolist() for order in ranks for batch in order.micro_batches(range(step, step + 1))]
        assert dealt == expected
        assert sum(map(len, dealt)) == alone.global_batch(step).num_samples
    epoch = [i for batch in alone.micro_batches(range(alone.steps_per_epoch)) for i in batch.indices.tolist()]
    assert len(set(epoch)) == len(epoch) == (96 if drop_last else 101)


def test_resume_at_any_step_reads_what_the_uninterrupted_run_reads() -> None:
    order = train_order(2, 1)
    whole = [(b.epoch, b.indices.tolist()) for b in order.micro_batches(range(10))]
    for step in range(10):
        before = [(b.epoch, b.indices.tolist()) for b in order.micro_batches(range(step))]
        after = [(b.epoch, b.indices.tolist()) for b in order.micro_batches(range(step, 10))]
        assert before + after == whole


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_evaluation_counts_every_sample_once(world_size: int) -> None:
    batches = [
        batch.indices
        for rank in range(world_size)
        for batch in evaluation_order(num_samples=50, batch_size=8, rank=rank, world_size=world_size)
    ]
    assert sorted(np.concatenate(batches).tolist()) == list(range(50))


@pytest.mark.parametrize("num_samples", range(1, 60))
def test_smaller_global_batch_is_split_evenly_and_rank_0_always_has_work(num_samples: int) -> None:
    batching = solve_batching(60, 5, 4)
    ranges = batching.split(num_samples)
    sizes = [stop - start for start, stop in ranges]
    assert sum(sizes) == num_samples
    assert max(sizes) <= 5
    assert max(sizes) - min(sizes) <= 1
    dealt = [list(batching.assign(len(ranges), rank)) for rank in range(4)]
    assert [index for own in dealt for index in own] == list(range(len(ranges)))
    assert dealt[0]


@pytest.mark.parametrize("num_samples", [1, 20, 40, 64])
def test_rank_without_work_in_the_first_step_gets_the_first_micro_batch_of_rank_0(num_samples: int) -> None:
    sampler = partial(uniform_order, num_samples=num_samples, seed=3)
    orders = [
        TrainSampler(
            num_samples=num_samples, sampler=sampler, batching=solve_batching(64, 16, 4), drop_last=False, rank=rank
        )
        for rank in range(4)
    ]
    for order in orders:
        own = list(order.micro_batches([0])) or list(orders[0].micro_batches([0]))
        assert order.first_micro_batch().indices.tolist() == own[0].indices.tolist()


def test_batch_that_does_not_divide_names_one_that_does() -> None:
    with pytest.raises(RecipeError, match=r"data\.batch_size=99") as caught:
        solve_batching(100, None, 3)
    assert "1, 2, 4, 5, 10, 20, 25 or 50 processes" in str(caught.value)
    solve_batching(99, None, 3)
    with pytest.raises(RecipeError, match=r"data\.batch_size=96"):
        solve_batching(100, 16, 2)
    assert solve_batching(96, 16, 2).accumulation == 3
