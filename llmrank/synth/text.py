"""Texts compared without a language library: normal forms, words, copies, overlap, scripts."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import chain
from typing import Literal, NamedTuple

from llmrank.errors import SpecError

_UNSPACED = (
    "CJK", "IDEOGRAPHIC", "HIRAGANA", "KATAKANA", "HENTAIGANA", "BOPOMOFO", "YI", "THAI", "LAO",
    "KHMER", "MYANMAR", "BALINESE", "JAVANESE", "NEW TAI LUE", "TAI LE", "TAI THAM", "TAI VIET",
)  # fmt: skip
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]+")
_BREAKS = re.compile("[\t\n\u2028\u2029]+")
_ASCII_BREAKS = re.compile("[^a-z0-9]+")
_BREAK = "\u200b"  # a zero-width space parts words; other format characters stand inside them
_KANA = ("HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA")
_GRAM = 3
_SHORT = 8  # words below which a query has too few 3-grams to be compared by them


class _Kept(dict[int, str]):
    """For str.translate: letters, marks and numbers stay, all else becomes a space or nothing."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        category = unicodedata.category(character)
        if category[0] in "LMN":
            selector = "VARIATION SELECTOR" in unicodedata.name(character, "")
            self[code] = "" if selector else character
        else:
            self[code] = "" if category == "Cf" and character != _BREAK else " "
        return self[code]


class _Spaced(dict[int, str]):
    """For str.translate: a space on both sides of every character of a script without spaces."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        unspaced = unicodedata.name(character, "").startswith(_UNSPACED)
        self[code] = f" {character} " if unspaced else character
        return self[code]


_kept, _spaced = _Kept(), _Spaced()


def printable(text: str) -> str:
    """The text with a space for control characters, but tabs and line ends, and half characters.

    A model may write these, and files that hold them are refused by JSON readers.
    """
    return _UNPRINTABLE.sub(" ", text).strip()


def line(text: str) -> str:
    """The same in one line, without tabs."""
    return _BREAKS.sub(" ", printable(text)).strip()


def normalised(text: str) -> str:
    """The text in lower case, with letters, marks and numbers alone and single spaces between.

    Unicode NFKC and full case folding, so that full-width forms, ligatures and the like are one.
    """
    if text.isascii():
        return _ASCII_BREAKS.sub(" ", text.lower()).strip()
    text = _folded(text).translate(_kept)
    return " ".join(_folded(text).split())


def words(text: str) -> list[str]:
    """The words of the normal form; in scripts without spaces (Chinese, Thai) its characters."""
    return _split(normalised(text))


def ngrams(items: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """All runs of n items, in order; none where there are fewer than n."""
    if n < 1:
        raise SpecError(f"n must be at least 1, not {n}")
    return list(zip(*(items[i:] for i in range(n)), strict=False))


class Copied(NamedTuple):
    """The longest run of a query's words in another text: in words, and as a share of the query."""

    words: int
    share: float


def copied(query: str, source: str) -> Copied:
    """The longest run of the query's words that stands in the source; 0 for a query of no words."""
    asked = words(query)
    text = f" {' '.join(words(source))} "
    best = 0
    for start in range(len(asked)):
        while start + best < len(asked):
            if f" {' '.join(asked[start : start + best + 1])} " not in text:
                break
            best += 1
    return Copied(best, best / len(asked) if asked else 0.0)


def script(text: str) -> str:
    """The script that most letters are of, as Unicode names it (LATIN, CYRILLIC), "" for none.

    Chinese characters and kana are counted together: JAPANESE where at least a tenth of them are
    kana, else CJK, which a short Japanese query may be too.
    """
    found: Counter[str] = Counter()
    for character, count in Counter(unicodedata.normalize("NFKC", text)).items():
        if name := _script_of(character):
            found[name] += count
    kana = sum(found.pop(name, 0) for name in _KANA)
    if kana:
        both = kana + found.pop("CJK", 0)
        found["JAPANESE" if kana * 10 >= both else "CJK"] = both
    return min(found, key=lambda name: (-found[name], name), default="")


class Match(NamedTuple):
    """The text of an index that a query is nearest to: its id, in what way, and how near (0 to 1).

    `how`: `equal`, character by character; `normalised`, once `normalised`; else the Jaccard
    coefficient of the sets of `3-grams` of words or of `words`.
    """

    id: str
    how: Literal["equal", "normalised", "3-grams", "words"]
    value: float


class Overlap:
    """An index of short texts that finds the one nearest to a query, if any is near enough.

    Near is a Jaccard coefficient of at least `least` (above 0, at most 1) of the 3-grams of words,
    or of the words where the query has fewer than eight. Exact: an inverted index, looked up by the
    rarest grams alone, as a text without any of these shares too few (Chaudhuri et al. 2006,
    prefix filter). Of texts equally near the first added is found.
    """

    def __init__(self, texts: Iterable[tuple[str, str]] = (), *, least: float = 0.5) -> None:
        if not 0 < least <= 1:
            raise SpecError(f"least must be above 0 and at most 1, not {least}")
        self._least = least
        self._ids: list[str] = []
        self._equal: dict[str, int] = {}
        self._normalised: dict[str, int] = {}
        self._words = _Postings()
        self._grams = _Postings()
        for id_, text in texts:
            self.add(id_, text)

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, id: str, text: str) -> None:
        """Enter one more text."""
        place = len(self._ids)
        normal = normalised(text)
        found = _split(normal)
        self._ids.append(id)
        self._equal.setdefault(text, place)
        if found:
            self._normalised.setdefault(normal, place)
        self._words.add(frozenset((word,) for word in found))
        self._grams.add(frozenset(ngrams(found, _GRAM)))

    def find(self, query: str) -> Match | None:
        """The text nearest to the query; None if none is near."""
        if (place := self._equal.get(query)) is not None:
            return Match(self._ids[place], "equal", 1.0)
        normal = normalised(query)
        if (place := self._normalised.get(normal)) is not None:
            return Match(self._ids[place], "normalised", 1.0)
        found = _split(normal)
        if len(found) < _SHORT:
            best = self._words.best(frozenset((word,) for word in found), self._least)
        else:
            best = self._grams.best(frozenset(ngrams(found, _GRAM)), self._least)
        if best is None:
            return None
        place, value = best
        return Match(self._ids[place], "words" if len(found) < _SHORT else "3-grams", value)


class _Postings:
    """Sets of grams, and for every gram the sets that hold it."""

    def __init__(self) -> None:
        self._sets: list[frozenset[tuple[str, ...]]] = []
        self._holders: dict[tuple[str, ...], list[int]] = {}

    def add(self, grams: frozenset[tuple[str, ...]]) -> None:
        for gram in grams:
            self._holders.setdefault(gram, []).append(len(self._sets))
        self._sets.append(grams)

    def best(self, grams: frozenset[tuple[str, ...]], least: float) -> tuple[int, float] | None:
        """Place and Jaccard coefficient of the nearest set, the first of equals."""
        held = [self._holders.get(gram, ()) for gram in grams]
        shared = max(1, math.ceil(least * len(grams) - 1e-9))  # in any set that is near enough
        rarest = sorted(held, key=len)[: len(grams) - shared + 1]
        most = len(grams) / least + 1e-9
        near = {
            place: _jaccard(grams, self._sets[place])
            for place in set(chain(*rarest))
            if shared <= len(self._sets[place]) <= most
        }
        place = min(near, key=lambda place: (-near[place], place), default=None)
        return None if place is None or near[place] < least else (place, near[place])


def _jaccard(one: frozenset[tuple[str, ...]], other: frozenset[tuple[str, ...]]) -> float:
    shared = len(one & other)
    return shared / (len(one) + len(other) - shared)


def _split(normal: str) -> list[str]:
    return (normal if normal.isascii() else normal.translate(_spaced)).split()


def _folded(text: str) -> str:
    folded = unicodedata.normalize("NFKC", text).casefold()
    return unicodedata.normalize("NFKC", folded)


@lru_cache(maxsize=1 << 16)
def _script_of(character: str) -> str:
    if not character.isalpha():
        return ""
    return unicodedata.name(character, "").split(" ")[0]
