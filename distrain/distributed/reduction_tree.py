"""Defines the fixed binary tree in which exact mode sums the micro-batches of a step on any number of processes.

Node (level, index) is the sum of the existing leaves from index x 2^level up to (index + 1) x 2^level. It is the sum of
its left and its right child; a node with only a left child has the value of that child. The shape of the tree depends
only on the number of leaves, so every assignment of leaves to processes gives the same floating-point sum.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import TypeVar

Node = tuple[int, int]
T = TypeVar("T")


def merge(nodes: dict[Node, T], num_leaves: int, add: Callable[[T, T], T]) -> None:
    """Replace, in place, every pair of siblings by `add(left, right)` at their parent, until no siblings are left.

    If the nodes cover all leaves, only the root remains.
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
    """Return the largest nodes that can be computed from the leaves `first` up to `stop` alone.

    There are at most about 2 x log2(stop - first), in the order of their leaves.
    """
    nodes: dict[Node, None] = {}
    for leaf in range(first, stop):
        nodes[0, leaf] = None
        merge(nodes, num_leaves, lambda _, __: None)
    return tuple(sorted(nodes, key=lambda node: node[1] << node[0]))


def _root_level(num_leaves: int) -> int:
    return (num_leaves - 1).bit_length()
