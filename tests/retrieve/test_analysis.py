from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrank.errors import InputError
from llmrank.retrieve import ANALYZERS, english, plain
from llmrank.retrieve.analysis import STOP_WORDS, analyzer_named

# The expected terms are what Lucene 9 with Anserini's default analyser gives for the same text.
LUCENE = [
    ("U.S. e.g. a.b.c. 3.14.15.", "u. e.g a.b.c 3.14.15"),
    ("1.5 1,000 1/2000 5% $3.50 1'000 1;2", "1.5 1,000 1 2000 5 3.50 1'000 1;2"),
    (
        "John's boys' O\u2019Neil\u2019s rock'n'roll JOHN\uff07S",
        "john boi o\u2019neil rock'n'rol john",
    ),
    ("3's '90s a'1 1.a", "3 s 90 1 1"),
    ("foo:bar foo_bar _x_ ___ x@y.com", "foo:bar foo_bar _x_ x y.com"),
    ("COVID-19 H2O 10^-6 m\u00b2", "covid 19 h2o 10 6 m"),
    ("There is no man in the house, and they will not be back", "man hous back"),
    ("generalizations possibly terribly irresistibly", "gener possibl terribl irresist"),
    (
        "pathology biology ugly feebly doubly assembly",
        "patholog biologi ugli feebli doubli assembl",
    ),
    ("us skies dying generically apology", "us ski dy gener apolog"),
    ("nai\u0308ve \u00f1and\u00fa e\u0301tude", "nai\u0308v \u00f1and\u00fa e\u0301tud"),
]


@pytest.mark.parametrize(("text", "terms"), LUCENE)
def test_english_gives_the_terms_of_lucene(text: str, terms: str) -> None:
    assert english(text) == terms.split()


def test_english_drops_the_33_stop_words() -> None:
    assert len(STOP_WORDS) == 33
    assert english(" ".join(STOP_WORDS)) == []


def test_plain_keeps_every_word_in_lower_case() -> None:
    assert plain("The U.S. boys' John's \u22481.5!") == ["the", "u.s", "boys", "john's", "1.5"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "\u6f22\u5b57\u304b\u306a\u30ab\u30ca",
            ["\u6f22", "\u5b57", "\u304b", "\u306a", "\u30ab\u30ca"],
        ),
        (
            "\ud55c\uad6d\uc5b4 \u0442\u0435\u043a\u0441\u0442",
            ["\ud55c\uad6d\uc5b4", "\u0442\u0435\u043a\u0441\u0442"],
        ),
        (
            "\u0939\u093f\u0928\u094d\u0926\u0940 \u092e\u0947\u0902",
            ["\u0939\u093f\u0928\u094d\u0926\u0940", "\u092e\u0947\u0902"],
        ),
        (
            "\u0e44\u0e17\u0e22\u0e41\u0e25\u0e19\u0e14\u0e4c",
            ["\u0e44\u0e17\u0e22\u0e41\u0e25\u0e19\u0e14\u0e4c"],
        ),
        (
            "ok \U0001f600 \U0001f469\u200d\U0001f4bb",
            ["ok", "\U0001f600", "\U0001f469\u200d\U0001f4bb"],
        ),
    ],
)
def test_plain_knows_the_words_of_other_scripts(text: str, words: list[str]) -> None:
    assert plain(text) == words


@given(st.text(max_size=60))
def test_any_text_gives_terms_without_spaces(text: str) -> None:
    for analyze in ANALYZERS.values():
        assert all(term and not any(map(str.isspace, term)) for term in analyze(text))


@given(st.lists(st.sampled_from(["walking", "the", "it's", "1.5", "u.s.", "x_y"])))
def test_words_are_analysed_one_by_one(words: list[str]) -> None:
    for analyze in ANALYZERS.values():
        assert analyze(" ".join(words)) == [term for word in words for term in analyze(word)]


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match="english, plain"):
        analyzer_named("klingon")
