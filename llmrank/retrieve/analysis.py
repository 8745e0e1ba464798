"""Analysers: from a text to the terms that an index counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, lru_cache
from types import MappingProxyType
from typing import Any

from llmrank.errors import InputError

Analyzer = Callable[[str], list[str]]

_ENGLISH = """
a an and are as at be but by for if in into is it no not of on or such
that the their then there these they this to was will with
"""
STOP_WORDS = frozenset(_ENGLISH.split())
"""The 33 English stop words of Lucene."""

_APOSTROPHES = "'\u2019\uff07"


def english(text: str) -> list[str]:
    """The terms that Lucene's EnglishAnalyzer gives: possessives cut, 33 stop words, Porter stems.

    Source: Lucene, Anserini's default; equal to it in every token but a few in mis-decoded text.
    """
    return [term for word in plain(text) if (term := _term(word))]


def plain(text: str) -> list[str]:
    """The lower-cased words of a text in any language (Unicode UAX #29), nothing removed.

    Chinese characters and Hiragana are words of their own; scripts written without spaces, such as
    Thai, give one word per run; an emoji is a word.
    """
    words: list[str] = _word_pattern().findall(text.lower())
    return words


ANALYZERS: Mapping[str, Analyzer] = MappingProxyType({"english": english, "plain": plain})
"""Analysers by the name that an index keeps."""


def analyzer_named(name: str) -> Analyzer:
    """The analyser of that name; InputError if there is none."""
    try:
        return ANALYZERS[name]
    except KeyError:
        known = ", ".join(ANALYZERS)
        raise InputError(f"there is no analyzer {name!r}", remedy=f"use one of: {known}") from None


@cache
def _word_pattern() -> Any:  # noqa: ANN401 (regex has no types)
    import regex  # type: ignore[import-untyped, unused-ignore]

    mark = r"\p{WB=Extend}\p{WB=Format}\p{WB=ZWJ}"
    letter = r"\p{WB=ALetter}\p{WB=Hebrew_Letter}"
    digit = r"\p{WB=Numeric}"
    joiner = r"\p{WB=ExtendNumLet}"
    # Spelled out, because later versions of Unicode took the colon away and Lucene keeps it.
    between_letters = r"[:.'\u00b7\u2018\u2019\u2024\u2027\ufe13\ufe52\ufe55\uff07\uff0e\uff1a]"
    between_digits = (
        r"[.,;'\u037e\u0589\u060c\u060d\u066c\u07f8\u2018\u2019\u2024\u2044\uff07\uff0e]"
    )
    return regex.compile(
        rf"""
        {joiner}*+ [{letter}{digit}] [{letter}{digit}{joiner}{mark}]*+
        (?: (?: (?<=[{letter}{mark}]) {between_letters} (?=[{letter}])
              | (?<=[{digit}{mark}]) {between_digits} (?={digit}) )
            [{letter}{digit}{joiner}{mark}]++ )*+
        | \p{{WB=Katakana}} [\p{{WB=Katakana}}{mark}]*+
        | \p{{LB=SA}} [\p{{LB=SA}}{mark}]*+
        | [\p{{Script=Han}}\p{{Script=Hiragana}}] [{mark}]*+
        | \p{{Regional_Indicator}}{{2}}
        | \p{{Extended_Pictographic}} (?: [{mark}] | (?<=\u200d) \p{{Extended_Pictographic}} )*+
        """,
        regex.VERBOSE,
    )


@cache
def _porter() -> tuple[Callable[[str], str], Callable[[str], object]]:
    """The Snowball project's Porter stemmer, and a test for Porter's measure being above 0."""
    import re

    import Stemmer  # type: ignore[import-untyped, import-not-found, unused-ignore]

    measure = re.compile("[aeiou][^aeiou]|[^aeiou]y[^aeiou]")
    return Stemmer.Stemmer("porter", 0).stemWord, measure.search


@lru_cache(maxsize=1 << 17)
def _term(word: str) -> str:
    """The term of a lower-cased word; empty for a stop word."""
    if word[-1] == "s" and word[-2:-1] in _APOSTROPHES:
        word = word[:-2] or word
    return "" if word in STOP_WORDS else _stem(word)


def _stem(word: str) -> str:
    """Stem as Martin Porter's own program and Lucene do.

    They differ from the published algorithm, which Snowball keeps to, in three places: words of one
    or two letters stay, "bli" becomes "ble" where only "abli" became "able", and "logi" "log".
    """
    if len(word) < 3:
        return word
    stem_word, has_measure = _porter()
    stem = stem_word(word)
    if stem.endswith("logi") and has_measure(stem[:-4]):
        return stem[:-1]
    if stem.endswith("bli") and not stem.endswith("abli") and has_measure(stem[:-3]):
        return stem_word(stem[:-1] + "e")
    return stem
