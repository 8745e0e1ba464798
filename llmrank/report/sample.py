"""Summaries of a stream whose memory does not grow with it."""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Sequence
from hashlib import blake2b
from random import Random
from typing import Generic, TypeVar

T = TypeVar("T")

DRAWN = 10_000
"""Numbers kept of each kind: a share read from them is off by 1 % of all at most, as a rule."""
NAMES = 1 << 15
"""Names kept apart: their estimated number is off by 1 % at most, as a rule."""
LARGEST = 1e100
"""Numbers from this on cannot be drawn."""
_HASHES = 1 << 64


class Reservoir(Generic[T]):
    """At most `size` of the items seen, every one equally likely: Vitter 1985, algorithm R."""

    def __init__(self, size: int, seed: str) -> None:
        self.size = size
        self.seen = 0
        self.items: list[T] = []
        self._random = Random(seed.encode("utf-8", "surrogatepass"))

    def add(self, item: T) -> None:
        """See one more item."""
        self.seen += 1
        if len(self.items) < self.size:
            self.items.append(item)
        elif (place := int(self._random.random() * self.seen)) < self.size:
            self.items[place] = item


def is_drawable(number: float) -> bool:
    """Whether a number is finite, and small enough for differences to be finite too."""
    return abs(number) < LARGEST


class Numbers(Reservoir[float]):
    """A sample of numbers; what is not finite, or too large to be drawn, is left out."""

    def __init__(self, seed: str, size: int = DRAWN) -> None:
        super().__init__(size, seed)
        self.below_zero = 0

    def add(self, item: float) -> None:
        """See one more number."""
        if is_drawable(item):
            super().add(item)
            self.below_zero += item < 0

    @property
    def is_sample(self) -> bool:
        """Whether there were more numbers than are kept."""
        return self.seen > len(self.items)

    def quantiles(self, *shares: float) -> list[float]:
        """The numbers below which these shares of the sample lie."""
        ordered = sorted(self.items)
        return [quantile(ordered, share) for share in shares]


def quantile(ordered: Sequence[float], share: float) -> float:
    """The quantile of sorted numbers, interpolated; nan of none."""
    if not ordered:
        return math.nan
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    part = place - low
    return ordered[low] * (1 - part) + ordered[high] * part


class Names:
    """How many different names there are, and how often each comes.

    Counts are kept for the `size` names with the smallest hashes, a uniform sample of the names
    whose counts are exact; up to that many names all is exact. Bar-Yossef et al. 2002 for the
    number of names, Gibbons 2001 for the sample.
    """

    def __init__(self, size: int = NAMES) -> None:
        self.size = size
        self.dropped = False
        self._counts: dict[int, int] = {}
        self._largest: list[int] = []  # a heap of the negated hashes

    def add(self, name: str) -> None:
        """See a name once more."""
        digest = blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        number = int.from_bytes(digest, "big")
        if number in self._counts:
            self._counts[number] += 1
        elif len(self._counts) < self.size:
            self._counts[number] = 1
            heapq.heappush(self._largest, -number)
        else:
            self.dropped = True
            if number < -self._largest[0]:
                del self._counts[-heapq.heapreplace(self._largest, -number)]
                self._counts[number] = 1

    def __len__(self) -> int:
        """The number of different names, estimated where there are more than are kept."""
        if not self.dropped:
            return len(self._counts)
        return round((self.size - 1) * _HASHES / -self._largest[0])

    @property
    def times(self) -> Counter[int]:
        """How many of the names kept came once, twice, and so on."""
        return Counter(self._counts.values())
