"""Selects weights by the patterns of a recipe, which match the names that a network gives them.

A pattern is the name of a weight (`fc.bias`) or of a layer (`layer4`), which means all weights in it, with the
wildcards of the shell (`layer[12]`, `*.bias`). `head` means the layers that give logits, and `backbone` all others.
"""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from distrain.errors import ModelError
from distrain.messages import nearest


def select(pattern: str, names: Sequence[str], *, heads: Sequence[str], key: str) -> list[str]:
    """Return those of `names` that a pattern matches, in their order.

    `heads` are the names of the network's heads, empty where they are not known. Raises `ModelError`, naming the
    recipe's key, where the pattern matches nothing.
    """
    if pattern in {"backbone", "head"}:
        if not heads:
            raise ModelError(f"{key}: {pattern!r} needs a known head of the network; name it with model.head_name")
        found = [name for name in names if any(head in prefixes(name) for head in heads) == (pattern == "head")]
    else:
        found = [name for name in names if any(fnmatchcase(prefix, pattern) for prefix in prefixes(name))]
    if not found:
        known = {prefix: None for name in names for prefix in prefixes(name)}
        known |= {"backbone": None, "head": None} if heads else {}
        raise ModelError(f"{key}: {pattern!r} is not the name of a weight or layer{nearest(pattern, known)}")
    return found


def prefixes(name: str) -> list[str]:
    """Return the name itself and those of all enclosing layers: `a.b.c`, `a`, `a.b`."""
    parts = name.split(".")
    return [name, *(".".join(parts[:length]) for length in range(1, len(parts)))]
