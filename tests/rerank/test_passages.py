"""Long documents by their passages: cutting, gathering, evidence."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrank.api.reranker import hits
from llmrank.errors import SpecError
from llmrank.plan import (
    Answer,
    Ask,
    Drive,
    Grade,
    Grades,
    Likelihood,
    LogProb,
    Order,
    Permutation,
    Plan,
    ask_all,
    drive,
)
from llmrank.rerank.listwise import sliding
from llmrank.rerank.order import by_score
from llmrank.rerank.passages import passages, split
from llmrank.rerank.pointwise import likelihood, yesno
from llmrank.types import Candidate, Document, Ordering, Query, Status
from tests.effort import sizes
from tests.rerank.judges import FAILED, QUERY, Failing, Perfect, best_first, candidates, grades

Rerank = Callable[[Query, Sequence[Candidate]], Plan[Ordering]]
WORDS = partial(passages, words=2, overlap=0)


def keep(query: Query, given: Sequence[Candidate]) -> Plan[Ordering]:
    """Ask nothing and change nothing."""
    yield from ask_all([])
    return Ordering(tuple(range(len(given))), (None,) * len(given))


def by(scores: Sequence[float | None]) -> Rerank:
    """A method that gives its passages these scores."""

    def rerank(query: Query, given: Sequence[Candidate]) -> Plan[Ordering]:
        yield from ask_all([])
        assert len(given) == len(scores)
        return Ordering(by_score(scores), tuple(scores))

    return rerank


def long(*counts: int) -> list[Candidate]:
    """Documents of so many passages of two words."""
    return [
        Candidate(Document(f"d{i}", " ".join(f"d{i}w{j}" for j in range(2 * count))), -float(i))
        for i, count in enumerate(counts)
    ]


def nobody(item: Ask[Any]) -> Answer[Any]:
    raise AssertionError(item)


@pytest.mark.parametrize("rerank", [likelihood, yesno, sliding])
@pytest.mark.parametrize("score", ["max", "mean", "first"])
def test_short_documents_are_ranked_as_without(rerank: Rerank, score: str) -> None:
    for count in sizes():
        found = grades(count)
        plain, cut = Perfect(found), Perfect(found)
        expected = drive(rerank(QUERY, candidates(count)), plain)
        running = Drive(passages(QUERY, candidates(count), rerank=rerank, score=score))
        tickets = running.start()
        while tickets:
            answered = [(ticket, cut(ticket.ask)) for ticket in tickets]
            tickets = [new for pair in answered for new in running.answer(*pair)]
        assert running.result == expected
        assert cut.asks == plain.asks


@given(st.integers(0, 60), st.integers(1, 12), st.integers(0, 11))
def test_passages_cover_a_document_and_share_their_overlap(
    count: int, words: int, overlap: int
) -> None:
    overlap = min(overlap, words - 1)
    document = Document("d", "\n ".join(f"w{i}" for i in range(count)), "Title", {"url": "u"})
    found = split(document, words, overlap)
    if count <= words:
        assert found == [document]
        return
    assert [part.id for part in found] == [f"d#{i}" for i in range(1, len(found) + 1)]
    texts = [part.text.split() for part in found]
    assert all(part.text in document.text and part.title == "Title" for part in found)
    assert all(part.metadata == {"url": "u"} for part in found)
    assert [len(text) for text in texts[:-1]] == [words] * (len(texts) - 1)
    assert overlap < len(texts[-1]) <= words
    whole = texts[0] + [word for text in texts[1:] for word in text[overlap:]]
    assert whole == document.text.split()
    for one, other in itertools.pairwise(texts):
        assert one[words - overlap :] == other[:overlap]


@pytest.mark.parametrize(
    ("score", "order", "scores", "evidence"),
    [
        ("max", (1, 0, 2), (5.0, 9.0, 3.0), ("d0w2 d0w3", "d1w4 d1w5", None)),
        ("mean", (1, 2, 0), (2.5, 10 / 3, 3.0), ("d0w2 d0w3", "d1w4 d1w5", None)),
        ("first", (2, 1, 0), (0.0, 1.0, 3.0), ("d0w0 d0w1", "d1w0 d1w1", None)),
    ],
)
def test_documents_are_worth_what_their_passages_are(
    score: str,
    order: tuple[int, ...],
    scores: tuple[float, ...],
    evidence: tuple[str | None, ...],
) -> None:
    rerank = by([0.0, 5.0, 1.0, 0.0, 9.0, 3.0])
    ordering = drive(WORDS(QUERY, long(2, 3, 1), rerank=rerank, score=score), nobody)
    assert ordering.order == order
    assert ordering.scores == pytest.approx(scores)
    assert ordering.evidence == evidence


def test_without_scores_places_count() -> None:
    def rerank(query: Query, given: Sequence[Candidate]) -> Plan[Ordering]:
        yield from ask_all([])
        return Ordering((5, 2, 1, 3, 0, 4), (None,) * 6)

    plan = partial(WORDS, QUERY, long(2, 2, 2), rerank=rerank)
    assert drive(plan(score="max"), nobody).order == (2, 1, 0)  # places 2, 1, 0
    assert drive(plan(score="mean"), nobody).order == (1, 2, 0)  # places 3, 2, 2.5
    assert drive(plan(score="first"), nobody).order == (1, 0, 2)  # places 4, 1, 5
    assert drive(plan(score="max"), nobody).scores == (None,) * 3


def test_a_mean_goes_by_places_where_the_method_does_not_order_by_its_scores() -> None:
    def rerank(query: Query, given: Sequence[Candidate]) -> Plan[Ordering]:
        yield from ask_all([])
        return Ordering((2, 3, 0, 1), (9.0, 8.0, 1.0, 1.0))

    ordering = drive(WORDS(QUERY, long(2, 2), rerank=rerank, score="mean"), nobody)
    assert ordering == Ordering((1, 0), (8.5, 1.0), ("d0w0 d0w1", "d1w0 d1w1"))


def test_a_passage_without_an_answer_does_not_count_beside_others_of_its_document() -> None:
    rerank = by([None, 1.0, 4.0, 2.0, None, None])
    ordering = drive(WORDS(QUERY, long(2, 2, 2), rerank=rerank), nobody)
    assert ordering.order == (1, 0, 2)
    assert ordering.scores == (1.0, 4.0, None)
    assert ordering.evidence == ("d0w2 d0w3", "d1w0 d1w1", None)


@pytest.mark.parametrize("score", ["max", "mean", "first"])
@pytest.mark.parametrize("rerank", [keep, likelihood, yesno, sliding])
def test_the_first_stage_order_comes_out_when_everything_fails(score: str, rerank: Rerank) -> None:
    documents = long(1, 3, 2, 9, 1, 4)
    ordering = drive(WORDS(QUERY, documents, rerank=rerank, score=score), lambda _: FAILED)
    assert ordering == Ordering(tuple(range(6)), (None,) * 6)


def test_without_scores_there_is_evidence_where_there_was_an_answer() -> None:
    def backwards(item: Ask[Any]) -> Answer[Any]:
        assert isinstance(item, Order)
        return Answer(status=Status.OK, value=Permutation((3, 2, 1, 0)))

    ordering = drive(WORDS(QUERY, long(2, 2), rerank=sliding), backwards)
    assert ordering.order == (1, 0)
    assert ordering.evidence == ("d0w2 d0w3", "d1w2 d1w3")


@pytest.mark.parametrize("score", ["max", "mean", "first"])
def test_behind_what_the_method_settles_documents_stay_as_they_are(score: str) -> None:
    def rerank(query: Query, given: Sequence[Candidate]) -> Plan[Ordering]:
        yield from ask_all([Likelihood(query, candidate.document) for candidate in given])
        return Ordering((7, 6, 4, 0, 1, 2, 3, 5), (None,) * 8, ranked=2)

    def judge(item: Ask[Any]) -> Answer[Any]:
        return Answer(status=Status.OK, value=LogProb(-1.0, 1))

    # Passages 0 to 2, 3, 4 to 5, and 6 to 7.
    ordering = drive(WORDS(QUERY, long(3, 1, 2, 2), rerank=rerank, score=score), judge)
    assert ordering.order == (3, 0, 1, 2)
    assert ordering.ranked == 1
    best = "d3w0 d3w1" if score == "first" else "d3w2 d3w3"
    assert ordering.evidence == (None, None, None, best)


@given(st.lists(st.integers(1, 5), max_size=12), st.sets(st.integers(0, 60)))
def test_nobody_is_lost(counts: list[int], failing: set[int]) -> None:
    class ByLength(Failing):
        def value(self, item: Ask[Any]) -> object:
            assert isinstance(item, Grade)
            likely = len(item.doc.text) / 100
            return Grades((likely, 1 - likely), 1.0)

    plan = partial(WORDS, QUERY, long(*counts), rerank=yesno)
    for score in ("max", "mean", "first"):
        ordering = drive(plan(score=score), ByLength([], failing))
        assert sorted(ordering.order) == list(range(len(counts)))
        assert len(ordering.scores) == len(counts)
        assert drive(plan(score=score), ByLength([], failing)) == ordering


def test_the_passages_of_all_documents_are_asked_for_in_one_round() -> None:
    running = Drive(WORDS(QUERY, long(3, 1, 2), rerank=yesno))
    tickets = running.start()
    shown = [ticket.ask.doc.id for ticket in tickets if isinstance(ticket.ask, Grade)]
    assert shown == ["d0#1", "d0#2", "d0#3", "d1", "d2#1", "d2#2"]
    for ticket in tickets:
        running.answer(ticket, Answer(status=Status.OK, value=Grades((0.5, 0.5), 1.0)))
    assert running.rounds == 1
    assert running.result.order == (0, 1, 2)


def test_a_hit_bears_the_passage_that_decided() -> None:
    documents = long(2, 1)
    ordering = drive(WORDS(QUERY, documents, rerank=by([0.0, 2.0, 1.0])), nobody)
    assert [hit.passage for hit in hits(documents, ordering)] == ["d0w2 d0w3", None]
    whole = drive(WORDS(QUERY, long(1, 1), rerank=by([2.0, 1.0])), nobody)
    assert whole.evidence == ()
    assert [hit.passage for hit in hits(long(1, 1), whole)] == [None, None]


@pytest.mark.parametrize(
    "parameters", [{"words": 0}, {"words": 50}, {"overlap": -1}, {"words": 5, "overlap": 5}]
)
def test_passages_that_do_not_move_on_are_refused_at_once(parameters: dict[str, int]) -> None:
    with pytest.raises(SpecError, match="overlap"):
        next(passages(QUERY, (), rerank=keep, **parameters))  # type: ignore[arg-type]


def test_an_unknown_score_is_refused_at_once() -> None:
    with pytest.raises(SpecError, match="max, mean or first"):
        next(passages(QUERY, (), rerank=keep, score="sum"))


def test_the_best_document_has_the_best_passage() -> None:
    for count in range(2, 40):
        found = grades(3 * count)

        def judge(item: Ask[Any], found: Sequence[int] = found) -> Answer[Any]:
            assert isinstance(item, Grade)
            name, _, number = item.doc.id.partition("#")
            grade = found[3 * int(name[1:]) + int(number) - 1]
            likely = grade / len(found)
            return Answer(status=Status.OK, value=Grades((likely, 1 - likely), 1.0))

        ordering = drive(WORDS(QUERY, long(*[3] * count), rerank=yesno), judge)
        best = [max(found[3 * i : 3 * i + 3]) for i in range(count)]
        assert list(ordering.order) == best_first(best)
