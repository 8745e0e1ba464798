"""Near-duplicates of long texts in one pass, by MinHash."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from llmrank.errors import SpecError
from llmrank.synth.text import words

Hashes = NDArray[np.uint64]
Signature = NDArray[np.uint16]

_VALUES = 128
_SURE = 0.99  # the chance that two texts just near enough are compared at all
_LONG, _SHORT = 5, 3  # words in a gram
_BOUND = 30  # words from which a text is compared by the longer grams
_BLOCK = 1024  # grams hashed at one time
_START = 256  # texts that the tables have room for at first
_TOP = np.uint64(48)  # bits shifted away, so that 16 stay

_rng = np.random.Generator(np.random.PCG64(2404))
_factors, _offsets, _gram_factors, _band_factors = (
    _rng.integers(0, 2**64, size, dtype=np.uint64) | np.uint64(1)
    for size in (_VALUES, _VALUES, _LONG, _VALUES)
)


class Distinct:
    """Finds texts that nearly stand before: a Jaccard coefficient of at least `least`.

    The coefficient is that of the sets of 5-grams of words, of 3-grams for texts of less than 30
    words, of characters in scripts without spaces. It is estimated by 128 values of MinHash
    (Broder 1997), so with a standard error of 0.035 where it is 0.8: a text that is just near
    enough is found half the time, an exact copy always. Texts are compared where a band of their
    values is equal, which is missed once in a hundred times at `least`, hardly ever above. Memory:
    about 0.5 to 1.5 kB for each text kept, whatever its length.
    """

    def __init__(self, least: float = 0.8) -> None:
        if not 0 < least <= 1:
            raise SpecError(f"least must be above 0 and at most 1, not {least}")
        self._least = least
        self._rows = _rows(least)
        self._bands = np.arange(_VALUES // self._rows)
        self._ids: list[str] = []
        self._signatures = np.empty((_START, _VALUES), np.uint16)
        self._next = np.empty((_START, len(self._bands)), np.int32)
        self._heads = np.empty((0, 0), np.int32)
        self._enter_all()

    def __len__(self) -> int:
        """How many texts were kept."""
        return len(self._ids)

    def seen(self, id: str, text: str) -> str | None:
        """The id of the nearest text kept before, the earliest of equals; None if none is near.

        Then, and only then, this text is kept, for later ones to be compared with.
        """
        found = words(text) or [text]
        hashes = np.fromiter(map(_hashed, found), np.uint64, len(found))
        signature = _signature(hashes, _size(len(found)))
        match = self._match(signature)
        if match is None and (other := _other_size(len(found), self._least)):
            match = self._match(_signature(hashes, other))
        if match is not None:
            return self._ids[match]
        self._keep(id, signature)
        return None

    def _match(self, signature: Signature) -> int | None:
        places = np.unique(np.fromiter(self._candidates(signature), np.int64))
        if not len(places):
            return None
        alike = (self._signatures[places] == signature).mean(axis=1)
        best = int(alike.argmax())
        return int(places[best]) if alike[best] >= self._least else None

    def _candidates(self, signature: Signature) -> Iterator[int]:
        """Every text in the same slot of a band: those with an equal band, and some others."""
        bands = self._bands
        places = self._heads[bands, self._slots(signature)]
        while len(bands := bands[places >= 0]):
            places = places[places >= 0]
            yield from places.tolist()
            places = self._next[places, bands]

    def _keep(self, id: str, signature: Signature) -> None:
        place = len(self._ids)
        if place == len(self._signatures):
            self._signatures = np.concatenate([self._signatures, np.empty_like(self._signatures)])
            self._next = np.empty((2 * place, len(self._bands)), np.int32)
            self._enter_all()
        self._ids.append(id)
        self._signatures[place] = signature
        self._enter(place)

    def _enter_all(self) -> None:
        slots = 2 * len(self._signatures)
        self._heads = np.full((len(self._bands), slots), -1, np.int32)
        for place in range(len(self._ids)):
            self._enter(place)

    def _enter(self, place: int) -> None:
        """Make a text the first in the chain of its slot in every band."""
        slots = self._slots(self._signatures[place])
        self._next[place] = self._heads[self._bands, slots]
        self._heads[self._bands, slots] = place

    def _slots(self, signature: Signature) -> NDArray[np.int64]:
        used = self._rows * len(self._bands)
        terms = signature[:used] * _band_factors[:used]
        keys = _mixed(terms.reshape(len(self._bands), self._rows).sum(axis=1))
        return (keys % np.uint64(self._heads.shape[1])).astype(np.int64)


def _rows(least: float) -> int:
    """The most values to a band with which two texts at `least` share a band surely enough."""
    for rows in range(_VALUES, 1, -1):
        missed: float = (1 - least**rows) ** (_VALUES // rows)
        if missed <= 1 - _SURE:
            return rows
    return 1


def _size(count: int) -> int:
    return _LONG if count >= _BOUND else min(_SHORT, count)


def _other_size(count: int, least: float) -> int:
    """The size of grams of texts across the bound that are near in length; 0 if there are none."""
    if not least * _BOUND <= count <= _BOUND / least:
        return 0
    return _SHORT if count >= _BOUND else min(_LONG, count)


def _signature(hashes: Hashes, size: int) -> Signature:
    """The least value of each of 128 hash functions over all grams, cut to 16 bits."""
    count = len(hashes) - size + 1
    grams = np.zeros(count, np.uint64)
    for i in range(size):
        grams += hashes[i : i + count] * _gram_factors[i]
    grams = _mixed(grams)
    least = np.full(_VALUES, np.iinfo(np.uint64).max, np.uint64)
    for start in range(0, count, _BLOCK):
        values = np.multiply.outer(_factors, grams[start : start + _BLOCK]) + _offsets[:, None]
        least = np.minimum(least, values.min(axis=1))
    return (_mixed(least) >> _TOP).astype(np.uint16)


def _mixed(values: Hashes) -> Hashes:
    """Every bit of the result depends on every bit: the finaliser of SplitMix64."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


@lru_cache(maxsize=1 << 16)
def _hashed(word: str) -> int:
    return int.from_bytes(blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest())
