from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrank.errors import SpecError
from llmrank.synth.near import Distinct
from llmrank.synth.text import ngrams, words


def text_of(rng: Random, count: int) -> list[str]:
    return [f"w{rng.randrange(5000)}" for _ in range(count)]


def changed(rng: Random, source: list[str], times: int) -> list[str]:
    """The words with some replaced, each at a place of its own."""
    copy = list(source)
    for place in sorted(range(len(copy)), key=lambda _: rng.random())[:times]:
        copy[place] = f"new{rng.randrange(10**9)}"
    return copy


def jaccard(one: list[str], other: list[str], n: int = 5) -> float:
    a, b = set(ngrams(one, n)), set(ngrams(other, n))
    return len(a & b) / len(a | b)


@given(st.lists(st.text(), max_size=12), st.sampled_from([0.3, 0.8, 1.0]))
@settings(max_examples=50, deadline=None)
def test_an_exact_copy_is_always_found(texts: list[str], least: float) -> None:
    index = Distinct(least)
    first = [index.seen(str(i), text) for i, text in enumerate(texts)]
    kept = {str(i) for i, found in enumerate(first) if found is None}
    assert len(index) == len(kept)
    again = [index.seen("again", text) for text in texts]
    assert set(again) <= kept
    for i, found in enumerate(first):
        if found is None:
            assert again[i] == str(i)
    assert len(index) == len(kept)


@given(st.lists(st.integers(0, 120), max_size=8), st.sampled_from([0.3, 0.8]))
@settings(max_examples=50, deadline=None)
def test_texts_of_other_words_are_never_taken_for_one(lengths: list[int], least: float) -> None:
    index = Distinct(least)
    for i, length in enumerate(lengths):
        text = " ".join(f"t{i}w{j}" for j in range(length)) or f"{'.' * (i + 1)}"
        assert index.seen(str(i), text) is None


def test_many_one_word_texts_are_told_apart() -> None:
    index = Distinct(0.5)
    assert [i for i in range(4000) if index.seen(str(i), f"word{i}") is not None] == []
    assert index.seen("copy", "Word777!") == "777"


@pytest.mark.slow
@pytest.mark.parametrize("least", [0.5, 0.7, 0.8, 0.9])
def test_planted_near_duplicates_are_found_and_others_not(least: float) -> None:
    rng = Random(7)
    sources = [text_of(rng, 400) for _ in range(400)]
    index = Distinct(least)
    assert not any(index.seen(str(i), " ".join(text)) for i, text in enumerate(sources))
    near, hits, far, wrong = 0, 0, 0, 0
    for i, source in enumerate(sources):
        copy = changed(rng, source, int(40 * rng.random() ** 2))
        true = jaccard(source, copy)
        if least + 0.06 <= true < 1 or least - 0.15 < true < least - 0.1:
            found = index.seen("copy", " ".join(copy))
            if true > least:
                near, hits = near + 1, hits + (found == str(i))
            else:
                far, wrong = far + 1, wrong + (found is not None)
    assert near >= 15
    assert hits >= 0.95 * near
    assert wrong <= 0.1 * far


@pytest.mark.parametrize(("length", "cut"), [(12, 1), (29, 1), (30, 1), (31, 2), (34, 5), (120, 4)])
def test_a_text_is_found_with_its_end_cut_off(length: int, cut: int) -> None:
    """Also where the cut brings it under the bound below which grams are shorter."""
    rng = Random(length)
    sources = [text_of(rng, length) for _ in range(60)]
    for longer_first in (True, False):
        index, found = Distinct(0.7), 0
        for i, source in enumerate(sources):
            pair = [" ".join(source), " ".join(source[:-cut])]
            one, other = pair if longer_first else pair[::-1]
            assert index.seen(str(i), one) is None
            found += index.seen("copy", other) == str(i)
        assert found >= 57


def test_texts_of_scripts_without_spaces_are_compared_by_characters() -> None:
    rng = Random(3)
    letters = [chr(0x4E00 + i) for i in range(3000)]
    sources = ["".join(rng.choice(letters) for _ in range(150)) for _ in range(60)]
    index = Distinct(0.8)
    assert not any(index.seen(str(i), text) for i, text in enumerate(sources))
    copies = [text[:70] + "新" + text[71:] for text in sources]
    assert min(jaccard(words(a), words(b)) for a, b in zip(sources, copies, strict=True)) > 0.9
    found = [index.seen("copy", copy) == str(i) for i, copy in enumerate(copies)]
    assert sum(found) >= 57


def test_the_nearest_text_is_named_not_the_latest() -> None:
    rng = Random(5)
    source = text_of(rng, 300)
    index = Distinct(0.6)
    assert index.seen("far", " ".join(changed(rng, source, 25))) is None
    assert index.seen("near", " ".join(source)) is None
    assert index.seen("copy", " ".join(changed(rng, source, 1))) == "near"


def test_the_same_texts_give_the_same_answers() -> None:
    rng = Random(9)
    source = text_of(rng, 80)
    texts = [" ".join(changed(rng, source, rng.randrange(12))) for _ in range(300)]
    answers = []
    for _ in range(2):
        index = Distinct(0.75)
        answers.append([index.seen(str(i), text) for i, text in enumerate(texts)])
    assert answers[0] == answers[1]
    assert len({*answers[0]}) > 5


@pytest.mark.parametrize("least", [0.0, 1.5, float("nan")])
def test_a_bound_out_of_range_is_refused(least: float) -> None:
    with pytest.raises(SpecError, match="least"):
        Distinct(least)
