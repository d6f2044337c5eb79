"""Reads recipe keys under the names that they had in earlier versions."""

from functools import cache
from typing import Any

from distrain.errors import RecipeError
from distrain.messages import print_note

OLD_NAMES = {"data.hold": "data.cache"}  # old key: new key, in the same section


def rename_keys(tree: dict[str, Any]) -> list[str]:
    """Give the keys of a recipe their new names, in place; returns the old names that it had.

    Raises `RecipeError` where a key is given under both names.
    """
    found = []
    for old, new in OLD_NAMES.items():
        *sections, key = old.split(".")
        node: Any = tree
        for section in sections:
            node = node.get(section) if isinstance(node, dict) else None
        if isinstance(node, dict) and key in node:
            new_key = new.rpartition(".")[2]
            _check_not_both(old, is_new_given=new_key in node)
            node[new_key] = node.pop(key)
            found.append(old)
    return found


def rename_overrides(overrides: list[str]) -> list[str]:
    """Return `a.b=c` overrides with the new names of their keys; prints a note for each old one.

    Raises `RecipeError` where a key is given under both names.
    """
    parts = [override.partition("=") for override in overrides]
    given = {key.strip() for key, _, _ in parts}
    for old, new in OLD_NAMES.items():
        if old in given:
            _check_not_both(old, is_new_given=new in given)
            note_old_name(old)
    return [OLD_NAMES.get(key.strip(), key) + equals + value for key, equals, value in parts]


@cache  # a command that reads a recipe several times says it once
def note_old_name(old: str) -> None:
    """Print what the key that was called `old` is called now, once in a process."""
    print_note(f"the recipe key {old} has been renamed; write {OLD_NAMES[old]} instead")


def _check_not_both(old: str, *, is_new_given: bool) -> None:
    if is_new_given:
        raise RecipeError(f"{old} is the old name of {OLD_NAMES[old]}, and both are given; remove {old}")
