"""Keeps about 30 bytes for each image read, so that a million images fit into little memory."""

from array import array
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from distrain.data.inspection.probe_image import NO_IMAGE, ImageFacts, ImageFlag, find_image, probe_image, unreadable
from distrain.data.inspection.scan import Listing
from distrain.data.inspection.worker_pool import DecodePool

Reasons = dict[int, str]
Indices: TypeAlias = NDArray[np.int64]


class ImageTable:
    """The facts of images in the order of a listing; `reasons` has those that are broken or misnamed."""

    def __init__(self) -> None:
        self._sizes = array("I")
        self._flags = array("H")
        self._digests = bytearray()
        self.reasons: Reasons = {}

    def append(self, facts: ImageFacts) -> None:
        """Add the next image."""
        if facts.reason:
            self.reasons[len(self._flags)] = facts.reason
        self._sizes.extend((facts.width, facts.height))
        self._flags.append(facts.flags)
        self._digests += facts.digest

    def sizes(self) -> NDArray[np.uint32]:
        """Return width and height in pixels, uint32 [n, 2]; 0 where unknown."""
        return np.array(self._sizes, np.uint32).reshape(-1, 2)

    def with_flag(self, flag: ImageFlag) -> Indices:
        """Return the indices of the images with any bit of `flag`, int64 [k], ascending."""
        return np.flatnonzero(np.array(self._flags, np.uint16) & int(flag))

    def duplicates(self) -> list[Indices]:
        """Return the groups of images with the same pixels, each ascending, sorted by their first image."""
        digests = np.frombuffer(bytes(self._digests), np.uint64).reshape(-1, 2)
        decoded = np.flatnonzero(digests.any(axis=1))
        if not len(decoded):
            return []
        digests = digests[decoded]
        order = np.lexsort((digests[:, 1], digests[:, 0]))  # stable: ascending indices within a group
        digests = digests[order]
        starts = np.flatnonzero(np.append(True, (digests[1:] != digests[:-1]).any(axis=1)))
        lengths = np.diff(np.append(starts, len(order)))
        repeated = np.flatnonzero(lengths > 1)
        groups = [decoded[order[starts[i] : starts[i] + lengths[i]]] for i in repeated]
        return sorted(groups, key=lambda group: int(group[0]))


def probe_all(pool: DecodePool, listing: Listing, *, advance: Callable[[], None]) -> tuple[ImageTable, ImageTable]:
    """Read every file of a listing; returns the facts of its images, and of its other files.

    `advance` is called after each image.
    """
    images, others = ImageTable(), ImageTable()
    addresses = map(listing.address, range(len(listing.paths)))
    for facts in pool.read(probe_image, addresses, on_crash=unreadable):
        images.append(facts)
        advance()
    for facts in pool.read(find_image, map(listing.absolute, listing.others), on_crash=lambda _: NO_IMAGE):
        others.append(facts)
    return images, others
