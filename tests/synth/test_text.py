from __future__ import annotations

import unicodedata
from time import perf_counter

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llmrank.errors import SpecError
from llmrank.synth.text import Match, Overlap, copied, ngrams, normalised, script, words

few_words = st.lists(st.sampled_from(["a", "b", "c", "d", "e", "f", "g"]), max_size=12).map(
    " ".join
)


@given(st.text())
@example("ΐ\u0345")
@example("e\u200d\u0301")
@example("ﬁ①½ﷺ…")
def test_a_normal_form_is_its_own_and_has_no_marks_between(text: str) -> None:
    normal = normalised(text)
    assert normalised(normal) == normal
    assert normal == normal.strip()
    assert all(c == " " or unicodedata.category(c)[0] in "LMN" for c in normal)
    assert "  " not in normal


@given(st.text(alphabet=st.characters(codec="ascii")))
def test_ascii_takes_no_other_way_than_the_rest(text: str) -> None:
    assert normalised(f"{text} é") == f"{normalised(text)} é".strip()


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("  What's  the\nCAPITAL? ", "what s the capital"),
        ("ＦＵＬＬ　ｗｉｄｔｈ", "full width"),
        ("Straße", "strasse"),
        ("co\u00adoper\u200cate", "cooperate"),
        ("snake_case-word", "snake case word"),
        ("हिन्दी, भाषा!", "हिन्दी भाषा"),
        ("I ❤\ufe0f you", "i you"),
        ("?!…", ""),
    ],
)
def test_normal_forms(text: str, normal: str) -> None:
    assert normalised(text) == normal


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello, World 42", ["hello", "world", "42"]),
        ("東京の人口", ["東", "京", "の", "人", "口"]),
        ("ภาษา", ["ภ", "า", "ษ", "า"]),
        ("用GPU训练", ["用", "gpu", "训", "练"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("서울 인구", ["서울", "인구"]),
        ("", []),
    ],
)
def test_words(text: str, expected: list[str]) -> None:
    assert words(text) == expected


@given(st.text())
def test_words_are_those_of_the_normal_form(text: str) -> None:
    assert words(normalised(text)) == words(text)
    assert "".join(words(text)) == normalised(text).replace(" ", "")


@given(st.lists(st.text(max_size=2), max_size=9), st.integers(1, 10))
def test_ngrams_are_all_runs(items: list[str], n: int) -> None:
    assert ngrams(items, n) == [tuple(items[i : i + n]) for i in range(max(0, len(items) - n + 1))]


def test_ngrams_of_nothing_are_refused() -> None:
    with pytest.raises(SpecError):
        ngrams(["a"], 0)


def longest_common_run(one: list[str], other: list[str]) -> int:
    runs = {tuple(other[i:j]) for i in range(len(other)) for j in range(i + 1, len(other) + 1)}
    return max((j - i for i in range(len(one)) for j in range(len(one) + 1)
                if tuple(one[i:j]) in runs), default=0)  # fmt: skip


@given(few_words, few_words)
def test_copied_is_the_longest_common_run(query: str, source: str) -> None:
    found = copied(query, source)
    assert found.words == longest_common_run(query.split(), source.split())
    assert found.share == (found.words / len(query.split()) if query else 0)


def test_a_copy_is_found_whatever_its_case_and_marks() -> None:
    assert copied("Is the CELL wall thick?", "We saw: the cell-wall, thick.") == (4, 0.8)
    assert copied("he art", "the arts") == (0, 0.0)  # whole words alone
    assert copied("東京の天気", "今日、東京の空") == (3, 0.6)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("plain English, 42", "LATIN"),
        ("ｆｕｌｌ", "LATIN"),
        ("Привет, world!", "CYRILLIC"),
        ("这是中文 GPU", "CJK"),
        ("これは東京大学の建物です", "JAPANESE"),
        ("カタカナ", "JAPANESE"),
        ("東京大学", "CJK"),
        ("鲁迅先生写了一篇关于の字的长长长长文章", "CJK"),
        ("한국어 문장", "HANGUL"),
        ("ภาษาไทย", "THAI"),
        ("हिन्दी", "DEVANAGARI"),
        ("42 + 1 = ?", ""),
        ("", ""),
    ],
)
def test_scripts(text: str, name: str) -> None:
    assert script(text) == name


@given(st.text(), st.integers(2, 3))
def test_a_text_said_twice_is_of_the_same_script(text: str, times: int) -> None:
    assert script(text * times) == script(text)


def test_the_way_in_which_texts_are_alike_is_told() -> None:
    held = Overlap(
        [
            ("equal", "what is dense retrieval"),
            ("long", "how do the wings of a swept aircraft behave at high speed"),
            ("short", "wing flutter at speed"),
            ("twin", "wing flutter at speed"),
        ]
    )
    assert len(held) == 4
    assert held.find("what is dense retrieval") == Match("equal", "equal", 1.0)
    assert held.find("What is DENSE retrieval?") == Match("equal", "normalised", 1.0)
    assert held.find("how do the wings of a swept aircraft behave at low speed") == Match(
        "long", "3-grams", 8 / 12
    )
    assert held.find("speed at wing flutter") == Match("short", "words", 1.0)
    assert held.find("an entirely other question about the growth of plants in spring") is None


@pytest.mark.parametrize("empty", ["", "?!", " "])
def test_texts_without_words_are_only_equal_to_themselves(empty: str) -> None:
    held = Overlap([("empty", "..."), ("words", "some words")])
    assert held.find(empty) is None
    assert held.find("...") == Match("empty", "equal", 1.0)


def jaccard(one: str, other: str, n: int) -> float:
    a, b = set(ngrams(words(one), n)), set(ngrams(words(other), n))
    return len(a & b) / len(a | b) if a | b else 0.0


@given(st.lists(few_words, max_size=12), few_words, st.sampled_from([0.1, 1 / 3, 0.5, 0.8, 1.0]))
def test_the_index_finds_what_comparing_with_all_finds(
    texts: list[str], query: str, least: float
) -> None:
    found = Overlap(((str(i), text) for i, text in enumerate(texts)), least=least).find(query)
    if query in texts:
        assert found == Match(str(texts.index(query)), "equal", 1.0)
        return
    n = 1 if len(query.split()) < 8 else 3
    near = [jaccard(query, text, n) for text in texts]
    best = max(near, default=0.0)
    if best < least or best == 0:
        assert found is None
    else:
        assert found == Match(str(near.index(best)), "words" if n == 1 else "3-grams", best)


@given(st.lists(few_words, max_size=9))
def test_texts_may_be_added_as_they_come(texts: list[str]) -> None:
    whole = Overlap((str(i), text) for i, text in enumerate(texts))
    grown = Overlap()
    for i, text in enumerate(texts):
        grown.add(str(i), text)
    assert [whole.find(text) for text in texts] == [grown.find(text) for text in texts]


def test_planted_queries_are_found_and_no_others() -> None:
    held = [
        (f"t{i}", f"does gene g{i} cause disease d{i} in old mice of line l{i}") for i in range(20)
    ]
    index = Overlap(held)
    planted = [f"Does gene g{i} cause disease d{i}, in old mice of line l{i}?!" for i in range(20)]
    assert [index.find(query) for query in planted] == [
        Match(f"t{i}", "normalised", 1.0) for i in range(20)
    ]
    others = [f"which vitamin v{i} is lost when vegetable x{i} is boiled long" for i in range(200)]
    assert [query for query in others if index.find(query)] == []


def test_many_queries_are_looked_up_fast() -> None:
    held = Overlap(
        (str(i), f"what is the use of term{i} in the field f{i % 50}") for i in range(2000)
    )
    queries = [f"what is the role of term{i} in the town t{i % 70}" for i in range(5000)]
    started = perf_counter()
    for query in queries:
        held.find(query)
    assert perf_counter() - started < 20  # half a second; all pairs take minutes


@pytest.mark.parametrize("least", [0.0, -1.0, 1.1, float("nan")])
def test_a_bound_out_of_range_is_refused(least: float) -> None:
    with pytest.raises(SpecError, match="least"):
        Overlap(least=least)
