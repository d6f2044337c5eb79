"""The tree's sum has the same bits however its leaves are grouped, and needs few partial sums."""

import math
import random

import pytest
import torch

from distrain.config.batching import solve_batching
from distrain.distributed.reduction_tree import covering_nodes, merge


def tree_sum(leaves: list[torch.Tensor], cuts: list[int]) -> torch.Tensor:
    """Sum in groups of neighbours first, each as far as it goes, then all together."""
    everything: dict[tuple[int, int], torch.Tensor] = {}
    for start, stop in zip([0, *cuts], [*cuts, len(leaves)], strict=True):
        held = {}
        for leaf in range(start, stop):
            held[0, leaf] = leaves[leaf].clone()
            merge(held, len(leaves), torch.add)
        assert tuple(held) == covering_nodes(start, stop, len(leaves)) or not held
        everything |= held
    merge(everything, len(leaves), torch.add)
    (root,) = everything.values()
    return root


@pytest.mark.parametrize("num_leaves", [1, 2, 3, 4, 5, 6, 7, 8, 12, 13, 16, 31])
def test_every_grouping_gives_the_same_bits(num_leaves: int) -> None:
    chance = random.Random(num_leaves)
    leaves = list(torch.randn(num_leaves, 1000, generator=torch.Generator().manual_seed(num_leaves)))
    whole = tree_sum(leaves, [])
    assert torch.allclose(whole, torch.stack(leaves).sum(0), atol=1e-5)
    for _ in range(20):
        cuts = sorted(chance.choices(range(num_leaves + 1), k=chance.randrange(5)))
        assert torch.equal(tree_sum(leaves, cuts), whole), cuts


def test_the_order_of_a_plain_sum_would_be_seen() -> None:
    leaves = list(torch.randn(6, 1000, generator=torch.Generator().manual_seed(0)))
    one_after_the_other = leaves[0]
    for leaf in leaves[1:]:
        one_after_the_other = one_after_the_other + leaf
    assert not torch.equal(one_after_the_other, tree_sum(leaves, []))


def test_partial_sums_grow_with_the_logarithm() -> None:
    for num_leaves in range(1, 200):
        held: dict[tuple[int, int], None] = {}
        for leaf in range(num_leaves):
            held[0, leaf] = None
            merge(held, num_leaves, lambda _, __: None)
            assert len(held) <= math.log2(num_leaves) + 1
        for first in range(0, num_leaves, 7):
            nodes = covering_nodes(first, num_leaves, num_leaves)
            assert len(nodes) <= 2 * math.log2(num_leaves) + 1
            assert [index << level for level, index in nodes] == sorted(index << level for level, index in nodes)


def test_equal_powers_of_two_leave_one_node_to_each_process() -> None:
    for world_size in (1, 2, 4, 8):
        batching = solve_batching(64, 4, world_size, is_exact=True)
        for rank in range(world_size):
            own = batching.assign(16, rank)
            assert len(covering_nodes(own.start, own.stop, 16)) == 1
