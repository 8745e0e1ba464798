from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrank import Retriever, expand, trec
from llmrank.errors import SpecError
from llmrank.expand import Expansion, FirstStage, NeedsIndex, NoIndex
from llmrank.expand.feedback import _Adam, _toward_grades, _toward_order, log_odds
from llmrank.plan import Answer, Ask, Drive, Embed, Grade, Grades, drive
from llmrank.retrieve import english
from llmrank.types import Query, Status
from tests.expand.first_stages import DENSE, Toy

DATA = (Path(__file__).parents[2] / "../shared/data").resolve()
TEXTS = {"a": "cat cat dog", "b": "cat fish", "c": "bird", "d": "sun"}
VECTORS = {"a": (1.0, 0.0), "b": (0.6, 0.8), "c": (0.0, 1.0), "d": (-1.0, 0.0)}
QUERY = Query("q", "cat")


def nobody(item: Ask[Any]) -> Answer[Any]:
    raise AssertionError(f"{item} was asked")


def model(
    vector: tuple[float, ...] | None = (1.0, 0.0), grades: Mapping[str, float] | None = None
) -> Callable[[Ask[Any]], Answer[Any]]:
    """Embeds every query the same; grades documents as given, the others not at all."""

    def answer(item: Ask[Any]) -> Answer[Any]:
        if isinstance(item, Embed) and vector is not None:
            return Answer(status=Status.OK, value=np.array([vector], dtype=np.float32))
        if isinstance(item, Grade) and item.doc.id in (grades or {}):
            p = (grades or {})[item.doc.id]
            return Answer(status=Status.OK, value=Grades((p, 1 - p), 1.0))
        return Answer(status=Status.FAILED, problem="no")

    return answer


def run(
    method: str,
    first: FirstStage,
    query: Query = QUERY,
    answer: Callable[[Ask[Any]], Answer[Any]] = nobody,
) -> Expansion:
    return drive(expand.parse(method).plan(query, first), answer)


def terms(expansion: Expansion) -> Mapping[str, float]:
    (view,) = expansion.views
    assert (expansion.expanded, view.texts, view.vector) == (True, (), None)
    return view.terms


def vector(expansion: Expansion) -> list[float]:
    (view,) = expansion.views
    assert view.vector is not None
    assert view.vector.dtype == np.float32
    assert view.vector.shape == (1, 2)
    found: list[float] = view.vector[0].tolist()
    return found


def test_rm3_by_hand() -> None:
    # Scores: a 2, b 1. a gives cat 2/3 * 2 and dog 1/3 * 2, b gives cat 1/2 and fish 1/2:
    # cat 11/6, dog 4/6, fish 3/6; the two largest come to 15/6.
    found = terms(run("rm3(fb_docs=2, fb_terms=2, max_df=1)", Toy(TEXTS)))
    assert found == pytest.approx({"cat": (1 + 11 / 15) / 2, "dog": 4 / 15 / 2})
    found = terms(
        run("rm3(fb_docs=2, fb_terms=9, max_df=1, original_query_weight=0.2)", Toy(TEXTS))
    )
    parts = {"cat": 0.2 + 0.8 * 11 / 18, "dog": 0.8 * 4 / 18, "fish": 0.8 * 3 / 18}
    assert found == pytest.approx(parts)


def test_rm3_prunes_a_document_before_it_is_divided() -> None:
    first = Toy({"a": "cat ant ant ant bee bee", "b": "sun"})
    found = terms(run("rm3(fb_terms=2, max_df=1, original_query_weight=0)", first))
    assert found == pytest.approx({"ant": 3 / 5, "bee": 2 / 5, "cat": 0})


def test_rm3_and_rocchio_take_of_equal_weights_the_first_in_the_alphabet() -> None:
    first = Toy({"a": "cat fox elk dog", "b": "sun"})
    for method in ("rm3(fb_terms=3, max_df=1)", "rocchio(top_fb_terms=3, max_df=1)"):
        assert set(terms(run(method, first))) == {"cat", "dog", "elk"}


@pytest.mark.parametrize(
    ("term", "rm3", "rocchio"),
    [
        ("x", False, False),
        ("xy", True, True),
        ("x" * 20, True, True),
        ("x" * 21, False, False),
        ("r2d2", True, True),
        ("x-y", False, True),
        ("über", False, True),
        ("\u0663\u0664", False, True),
    ],
)
def test_what_terms_feedback_takes(term: str, rm3: bool, rocchio: bool) -> None:
    first = Toy({"a": f"cat {term}", "b": "sun"})
    assert (term in terms(run("rm3(max_df=1)", first))) is rm3
    assert (term in terms(run("rocchio(max_df=1)", first))) is rocchio
    assert (term in terms(run("rm3(max_df=1, filter_terms=false)", first))) is rocchio


def test_terms_of_more_than_a_tenth_of_the_documents_are_no_feedback() -> None:
    texts = {str(i): "sun" for i in range(18)} | {"a": "cat dog elk", "b": "dog elk"}
    first = Toy(texts | {"a": "cat dog elk ox", "b": "dog elk ox", "0": "sun ox"})
    for method in ("rm3", "rocchio"):
        # cat is in 1 of 20, dog and elk are in 2, ox in 3.
        assert set(terms(run(method, first))) == {"cat", "dog", "elk"}


@pytest.mark.parametrize("method", ["rm3", "rocchio", "rocchio(gamma=0.1)"])
@pytest.mark.parametrize(("text", "note"), [("emu", "nothing found"), ("ox", "no feedback term")])
def test_without_feedback_the_plain_query_serves(method: str, text: str, note: str) -> None:
    found = run(method, Toy({"a": "ox", "b": "ox"}), Query("q", text))
    assert (found.expanded, found.note) == (False, note)
    assert [view.texts for view in found.views] == [((text, 1.0),)]


def test_rocchio_by_hand() -> None:
    # a is (cat 2, dog 1) / sqrt 5, b is (cat 1, fish 1) / sqrt 2.
    five, two = math.sqrt(5), math.sqrt(2)
    cat, fish = (2 / five + 1 / two) / 2, 1 / two / 2
    length = math.hypot(cat, fish)
    found = terms(run("rocchio(top_fb_docs=2, top_fb_terms=2, max_df=1)", Toy(TEXTS)))
    assert found == pytest.approx({"cat": 1 + 0.75 * cat / length, "fish": 0.75 * fish / length})


def test_rocchio_takes_the_last_documents_off() -> None:
    # Of cat, cat and dog the query is (2, 1) / sqrt 5; a is first, and b the last of two.
    five, two = math.sqrt(5), math.sqrt(2)
    query, first = Query("q", "cat cat dog"), Toy(TEXTS, depth=2)
    method = "rocchio(top_fb_docs=1, bottom_fb_docs=1, max_df=1, beta=0.5, gamma=0.25)"
    expected = {"cat": 1.5 * 2 / five - 0.25 / two, "dog": 1.5 / five}
    assert terms(run(method, first, query)) == pytest.approx(expected)


def test_without_a_term_above_0_the_plain_query_serves() -> None:
    found = run("rocchio(alpha=0, beta=0, max_df=1)", Toy(TEXTS))
    assert (found.expanded, found.note) == (False, "no term is left above 0")


def test_a_document_without_usable_terms_still_counts_in_the_mean() -> None:
    first = Toy({"a": "cat", "b": "cat x", "c": "x x"})
    found = terms(run("rocchio(max_df=0.7, beta=1)", first, Query("q", "cat x")))
    half = 1 / math.sqrt(2)
    assert found == pytest.approx({"cat": half + 1, "x": half})


def test_feedback_on_terms_asks_no_model() -> None:
    for method in ("rm3", "rocchio"):
        running = Drive(expand.parse(method).plan(QUERY, Toy(TEXTS)))
        assert running.start() == []
        assert (running.done, running.rounds) == (True, 0)
        assert expand.parse(method).needs(frozenset({"bm25"})) == []


def test_vector_prf_by_hand() -> None:
    first = Toy(TEXTS, VECTORS)
    # The query is a's vector: a, b and c are found in this order.
    assert vector(run("vector_prf(k=2)", first, answer=model())) == pytest.approx(
        [2.6 / 3, 0.8 / 3]
    )
    assert vector(run("vector_prf", first, answer=model())) == pytest.approx([2.6 / 4, 1.8 / 4])
    few = vector(run("vector_prf(k=9)", first, answer=model()))
    assert few == pytest.approx([1.6 / 5, 1.8 / 5])
    moved = vector(run("vector_rocchio(k=2)", first, answer=model()))
    assert moved == pytest.approx([0.4 + 0.6 * 0.8, 0.6 * 0.4])
    moved = vector(run("vector_rocchio(k=1, alpha=2, beta=0.5)", first, answer=model()))
    assert moved == pytest.approx([2.5, 0])


@pytest.mark.parametrize("method", ["vector_prf", "vector_rocchio", "rerank_feedback"])
def test_feedback_without_an_index_asks_nothing(method: str) -> None:
    with pytest.raises(NeedsIndex):
        next(expand.parse(method).plan(QUERY, NoIndex(DENSE)))


@pytest.mark.parametrize("method", ["vector_prf", "vector_rocchio", "rerank_feedback"])
def test_a_query_without_a_vector_finds_nothing_and_says_why(method: str) -> None:
    found = run(method, Toy(TEXTS, VECTORS), answer=model(None))
    assert (found.expanded, found.views) == (False, ())
    assert "could not be embedded" in found.note


def kl(scores: Any, wanted: Any) -> float:  # noqa: ANN401
    p, q = (np.exp(x - np.log(np.exp(x).sum())) for x in (wanted, scores))
    return float((p * np.log(p / q)).sum())


def ranknet(scores: Any, wanted: Any) -> float:  # noqa: ANN401
    order = sorted(range(len(wanted)), key=lambda i: -wanted[i])
    rank = {i: place for place, i in enumerate(order, start=1)}
    pairs = [(i, j) for i in rank for j in rank if wanted[i] > wanted[j]]
    losses = [np.log1p(np.exp(scores[j] - scores[i])) / (rank[i] + rank[j]) for i, j in pairs]
    return float(np.mean(losses))


@given(
    st.lists(st.tuples(st.floats(-3, 3), st.integers(-3, 3)), min_size=2, max_size=6).filter(
        lambda pairs: len({wanted for _, wanted in pairs}) > 1
    )
)
def test_the_slopes_are_those_of_the_losses(pairs: list[tuple[float, int]]) -> None:
    scores, wanted = (np.array(column, dtype=float) for column in zip(*pairs, strict=True))
    step = 1e-5
    for slope, loss in ((_toward_grades, kl), (_toward_order, ranknet)):
        found = slope(scores, wanted)
        for i in range(len(scores)):
            ahead, back = scores.copy(), scores.copy()
            ahead[i] += step
            back[i] -= step
            numeric = (loss(ahead, wanted) - loss(back, wanted)) / (2 * step)
            assert found[i] == pytest.approx(numeric, abs=1e-6)


def test_adam_by_hand() -> None:
    adam = _Adam(0.1, 1)
    # After bias correction the first step is the rate, whatever the gradient.
    assert adam.step(np.array([4.0])) == pytest.approx([0.1])
    mean = (0.9 * 0.1 * 4 + 0.1 * 2) / (1 - 0.81)
    square = (0.999 * 0.001 * 16 + 0.001 * 4) / (1 - 0.998001)
    assert adam.step(np.array([2.0])) == pytest.approx([0.1 * mean / math.sqrt(square)])


@pytest.mark.parametrize("by", ["grades", "order"])
def test_feedback_of_a_reranker_moves_the_vector_towards_what_it_likes(by: str) -> None:
    first = Toy(TEXTS, VECTORS)
    liked = {"a": 0.1, "b": 0.2, "c": 0.9}
    found = run(f"rerank_feedback(depth=3, by={by})", first, answer=model(grades=liked))
    x, y = vector(found)
    assert found.expanded
    assert x < 1
    assert y > 0
    far = run(f"rerank_feedback(depth=3, by={by}, steps=2000)", first, answer=model(grades=liked))
    graded = [name for name, _ in first.search(far, 4) if name in liked]
    assert graded == ["c", "b", "a"]


def test_one_step_of_feedback_by_hand() -> None:
    # Adam's first step is the rate against the sign of the slope in each direction.
    answer = model(grades={"a": 0.1, "c": 0.9})
    found = run("rerank_feedback(steps=1, rate=0.25)", Toy(TEXTS, VECTORS), answer=answer)
    assert vector(found) == pytest.approx([0.75, 0.25])


def test_feedback_reaches_the_grades_of_the_model() -> None:
    grades = {"a": 0.3, "b": 0.6, "c": 0.9}
    method = "rerank_feedback(depth=3, steps=20000, rate=0.01)"
    found = vector(run(method, Toy(TEXTS, VECTORS), answer=model(grades=grades)))
    odds = [log_odds(grades[name]) for name in "abc"]
    # The vectors at the start scored 1, .6 and 0: a range of 1.
    scores = [(odds[2] - odds[0]) / 2 * float(np.dot(found, VECTORS[name])) for name in "abc"]
    start = [(odds[2] - odds[0]) / 2 * VECTORS[name][0] for name in "abc"]
    assert kl(np.array(scores), np.array(odds)) < 0.02 < kl(np.array(start), np.array(odds))


@pytest.mark.parametrize(
    ("grades", "note"),
    [
        ({}, "0 of 3 documents graded"),
        ({"a": 0.9}, "1 of 3 documents graded"),
        ({"a": 0.9, "b": 0.9, "c": 0.9}, "none above another"),
    ],
)
def test_without_differing_grades_the_vector_stays(grades: dict[str, float], note: str) -> None:
    answer = model(grades=grades)
    found = run("rerank_feedback(depth=3)", Toy(TEXTS, VECTORS), answer=answer)
    assert not found.expanded
    assert note in found.note
    assert vector(found) == [1, 0]


def test_certain_grades_are_finite() -> None:
    assert log_odds(0.5) == pytest.approx(0)
    assert log_odds(0.0) == pytest.approx(-log_odds(1.0))
    answer = model(grades={"a": 0.0, "c": 1.0})
    assert np.isfinite(vector(run("rerank_feedback", Toy(TEXTS, VECTORS), answer=answer))).all()


@pytest.mark.parametrize(
    "text",
    [
        "rm3(fb_docs=0)",
        "rm3(fb_terms=0)",
        "rm3(original_query_weight=1.5)",
        "rm3(max_df=-1)",
        "rm3(original_query_weight=nan)",
        "rocchio(top_fb_docs=0)",
        "rocchio(bottom_fb_terms=0)",
        "rocchio(alpha=-1)",
        "rocchio(beta=inf)",
        "vector_prf(k=0)",
        "vector_rocchio(beta=-0.1)",
        "rerank_feedback(by=chance)",
        "rerank_feedback(depth=0)",
        "rerank_feedback(steps=-1)",
        "rerank_feedback(rate=nan)",
    ],
)
def test_parameters_are_checked_at_once(text: str) -> None:
    with pytest.raises(SpecError):
        expand.parse(text)


class Raw:
    """BM25 and RM3 in a few lines over the raw texts, as an independent account of both."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        self.rows = {name: Counter(english(text)) for name, text in texts.items()}
        self.mean = sum(row.total() for row in self.rows.values()) / len(self.rows)
        self.holders = defaultdict[str, list[str]](list)
        for name, row in self.rows.items():
            for term in row:
                self.holders[term].append(name)

    def search(self, weights: Mapping[str, float], k: int) -> list[tuple[str, float]]:
        scores = defaultdict[str, float](float)
        for term, weight in weights.items():
            found = len(self.holders.get(term, ()))
            idf = math.log(1 + (len(self.rows) - found + 0.5) / (found + 0.5))
            for name in self.holders.get(term, ()):
                row = self.rows[name]
                length = 0.9 * (1 - 0.4 + 0.4 * row.total() / self.mean)
                scores[name] += weight * idf * row[term] / (row[term] + length)
        return sorted(scores.items(), key=lambda pair: (pair[1], pair[0]), reverse=True)[:k]

    def rm3(self, text: str, k: int) -> list[tuple[str, float]]:
        own = Counter(english(text))
        model = Counter[str]()
        for name, score in self.search(own, 10):
            usable = [
                (-n, term)
                for term, n in self.rows[name].items()
                if 2 <= len(term) <= 20
                and set(term) <= set("abcdefghijklmnopqrstuvwxyz0123456789")
                and len(self.holders[term]) / len(self.rows) <= 0.1
            ]
            best = sorted(usable)[:10]
            for n, term in best:
                model[term] += n / sum(m for m, _ in best) * score  # type: ignore[assignment]
        best = sorted((-weight, term) for term, weight in model.items())[:10]
        total = sum(weight for weight, _ in best)
        weights = {term: 0.5 * n / own.total() for term, n in own.items()}
        for weight, term in best:
            weights[term] = weights.get(term, 0) + 0.5 * weight / total
        return self.search(weights, k)


@pytest.mark.slow
def test_rm3_on_cranfield_is_that_of_an_independent_account() -> None:
    folder = DATA / "cranfield"
    if not folder.is_dir():
        pytest.skip("shared/data is not here")
    documents = list(trec.read_corpus(folder / "corpus.jsonl"))
    queries = list(trec.read_queries(folder / "queries.jsonl"))
    raw = Raw({document.id: document.contents for document in documents})
    first = Retriever(documents).indexed(100)
    for query in queries[::5]:
        found = first.search(run("rm3", first, query), 100)
        expected = raw.rm3(query.text, 100)
        assert [s for _, s in found] == pytest.approx([s for _, s in expected], rel=1e-5)
        # Scores that differ in the last place alone may change places.
        assert {name for name, _ in found[:50]} <= {name for name, _ in expected}
