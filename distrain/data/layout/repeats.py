"""Finds images that are listed more than once: by a second link to a file, or by a second row of a table."""

import os
from collections.abc import Mapping
from typing import Any

from distrain.config.data import Split
from distrain.data.layout.file_list import Listing
from distrain.system.encoding import printable_name


def find_repeats(listings: Mapping[Split, Listing]) -> list[str]:
    """Return a sentence on the files that are listed more than once, or an empty list where there are none.

    The files are compared only where a listing says that some may repeat.
    """
    if not any(listing.may_repeat for listing in listings.values()):
        return []
    places: dict[tuple[int, int] | str, list[tuple[str, Split, Any]]] = {}
    for split, listing in listings.items():
        for path, target in zip(listing.paths, listing.targets, strict=True):
            places.setdefault(_identity(path), []).append((path, split, target))
    repeats = [found for found in places.values() if len(found) > 1]
    if not repeats:
        return []
    counts = {
        "under different labels": sum(len({target for _, _, target in found}) > 1 for found in repeats),
        "in both train and val": sum(len({split for _, split, _ in found}) > 1 for found in repeats),
    }
    details = [f"{count:,} {where}" for where, count in counts.items() if count]
    first, second, *_ = (printable_name(path) for path, _, _ in repeats[0])
    noun = "image is" if len(repeats) == 1 else "images are"
    example = first if first == second else f"{first} and {second}"
    return [f"{len(repeats):,} {noun} listed more than once{_in_brackets(details)}, such as {example}"]


def _identity(path: str) -> tuple[int, int] | str:
    try:
        found = os.stat(path)  # noqa: PTH116 - there may be a million
    except OSError:  # a dangling link: reading it will report the error
        return path
    return found.st_dev, found.st_ino


def _in_brackets(details: list[str]) -> str:
    return f" ({', '.join(details)})" if details else ""
