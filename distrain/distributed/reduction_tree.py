"""Defines the fixed binary tree in which exact mode sums the micro-batches of a step on any number of processes.

Node (level, index) is the sum of the leaves from index x 2^level up to (index + 1) x 2^level, as far as there are any.
It is its left child plus its right child; a node whose only child is the left one has that child's value. The shape
depends on the number of leaves alone, so every grouping of the leaves over processes gives the same floating-point sum.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import TypeVar

Node = tuple[int, int]
T = TypeVar("T")


def merge(nodes: dict[Node, T], num_leaves: int, add: Callable[[T, T], T]) -> None:
    """Replace, in place, every pair of siblings by `add(left, right)` at their parent, until no siblings are left.

    With all leaves, or any nodes that cover them, one node stays: the root.
    """
    for level in range(_root_level(num_leaves)):
        last = (num_leaves - 1) >> level
        for index in sorted(index for at, index in nodes if at == level):
            parent = (level + 1, index // 2)
            if index % 2 == 0 and index == last:
                nodes[parent] = nodes.pop((level, index))
            elif index % 2 == 1 and (level, index - 1) in nodes:
                left, right = nodes.pop((level, index - 1)), nodes.pop((level, index))
                nodes[parent] = add(left, right)


@lru_cache(maxsize=1024)
def covering_nodes(first: int, stop: int, num_leaves: int) -> tuple[Node, ...]:
    """Return the nodes to which the leaves from `first` up to `stop` can be summed without any other leaf.

    They are about 2 x log2(stop - first) at most, in the order of their leaves.
    """
    nodes: dict[Node, None] = {}
    for leaf in range(first, stop):
        nodes[0, leaf] = None
        merge(nodes, num_leaves, lambda _, __: None)
    return tuple(sorted(nodes, key=lambda node: node[1] << node[0]))


def _root_level(num_leaves: int) -> int:
    return (num_leaves - 1).bit_length()
