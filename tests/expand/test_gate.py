from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrank import expand
from llmrank.errors import SpecError
from llmrank.expand import Expander, Expansion, Kind, NeedsIndex, NoIndex
from llmrank.expand.gate import nqc
from llmrank.plan import (
    Answer,
    Ask,
    Drive,
    Embed,
    Grade,
    Grades,
    Need,
    Vectors,
    Write,
    Written,
    drive,
)
from llmrank.types import Query, Status
from tests.expand.first_stages import BM25, DENSE, Toy
from tests.expand.models import Model, Tasks

QUERY = Query("q", "cat")
TEXTS = {"a": "cat cat cat", "b": "cat cat", "c": "cat dog", "d": "dog dog", "e": "sun"}


def model(
    text: str | None = "dog dog dog dog", grades: Mapping[str, float] | None = None
) -> Callable[[Ask[Any]], Answer[Any]]:
    def answer(item: Ask[Any]) -> Answer[Any]:
        if isinstance(item, Write) and text is not None:
            return Answer(status=Status.OK, value=Written(text))
        if isinstance(item, Grade) and item.doc.id in (grades or {}):
            p = (grades or {})[item.doc.id]
            return Answer(status=Status.OK, value=Grades((p, 1 - p), 1.0))
        return Answer(status=Status.FAILED, problem="no")

    return answer


def run(settings: str, answer: Callable[[Ask[Any]], Answer[Any]] | None = None) -> Expansion:
    expander = expand.parse(f"gated(query2doc(repeat=1), {settings})")
    return drive(expander.plan(QUERY, Toy(TEXTS)), answer or model())


def asked(settings: str) -> list[list[type[Ask[Any]]]]:
    """The kinds of the asks of every round."""
    expander = expand.parse(f"gated(query2doc(repeat=1), {settings})")
    running = Drive(expander.plan(QUERY, Toy(TEXTS)))
    rounds, tickets, answer = [], running.start(), model(grades=dict.fromkeys(TEXTS, 0.5))
    while tickets:
        rounds.append([type(ticket.ask) for ticket in tickets])
        tickets = [t for old in tickets for t in running.answer(old, answer(old.ask))]
    return rounds


# The plain query finds a 3, b 2, c 1; the expanded one d 8, c 5, a 3, b 2.
def test_overlap_by_hand() -> None:
    found = run("by=overlap, k=2, least=0")
    assert (found.expanded, found.note) == (True, "expanded: overlap@2 0.00, needs 0")
    found = run("by=overlap, k=2, least=0.1")
    assert (found.expanded, found.note) == (False, "plain: overlap@2 0.00, needs 0.1")
    assert [view.texts for view in found.views] == [(("cat", 1.0),)]
    assert run("by=overlap, k=3, least=0.66").expanded  # two of three
    assert not run("by=overlap, k=3, least=0.67").expanded
    assert run("by=overlap, least=1").expanded


def test_what_was_written_is_kept_where_it_is_not_used() -> None:
    found = run("k=2")
    assert (found.expanded, found.texts) == (False, ("dog dog dog dog",))
    assert [answer.status for answer in found.answers] == ["ok"]


def test_grade_by_hand() -> None:
    # Of the first two the plain query has a and b, the expanded one d and c.
    grades = {"a": 0.5, "b": 0.3, "c": 0.9, "d": 0.1}
    found = run("by=grade, k=2", model(grades=grades))
    assert (found.expanded, found.note) == (True, "expanded: grade@2 0.500 against 0.400")
    found = run("by=grade, k=2", model(grades=grades | {"a": 0.7}))
    assert (found.expanded, found.note) == (False, "plain: grade@2 0.500 against 0.500")
    assert run("by=grade, k=2", model(grades={"a": 0.7, "c": 0.8})).expanded
    assert not run("by=grade, k=2", model(grades={})).expanded


def test_equal_lists_are_not_graded() -> None:
    found = run("by=grade, k=2", model("cat", grades={}))
    assert (found.expanded, found.note) == (False, "plain: the same 2 documents")


def test_scores_by_hand() -> None:
    # 3, 2 and 1 have the mean 2 and the deviation sqrt(2/3).
    assert nqc([3, 2, 1]) == pytest.approx((2 / 3) ** 0.5 / 2)
    found = run("by=scores, below=0.41")
    assert (found.expanded, found.note) == (True, "expanded: NQC@100 0.408, needs 0 to 0.41")
    found = run("by=scores, below=0.4")
    assert (found.expanded, found.note) == (False, "plain: NQC@100 0.408, needs 0 to 0.4")
    assert run("by=scores, above=0.4, below=9").expanded
    assert not run("by=scores, above=0.41, below=9").expanded
    assert run("by=scores, k=1, below=0").expanded


def test_what_gates_ask() -> None:
    assert asked("by=overlap") == [[Write]]
    assert asked("by=grade, k=2") == [[Write], [Grade] * 4]
    assert asked("by=scores, below=0") == []
    assert asked("by=scores, below=1") == [[Write]]


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=20), st.floats(0.01, 100))
def test_nqc_minds_no_scale(scores: list[float], factor: float) -> None:
    assert nqc(scores) >= 0
    assert nqc([factor * score for score in scores]) == pytest.approx(nqc(scores), abs=1e-9)


def test_nqc_of_nothing() -> None:
    assert nqc([]) == nqc([0.0, 0.0]) == nqc([2.0]) == 0


@pytest.mark.parametrize("by", ["overlap", "grade", "scores"])
def test_what_could_not_be_expanded_stays_so(by: str) -> None:
    found = run(f"by={by}, below=9", model(None))
    assert (found.expanded, found.note) == (False, "no usable text")


def test_names_are_read_back() -> None:
    expander = expand.parse("gated( query2doc(n=2) , by=grade)")
    assert expander.inner == Expander("query2doc", {"n": 2})
    assert expand.parse(str(expander)) == expander
    assert str(expander).startswith("gated(query2doc(n=2, repeat=5), by=grade, ")
    assert expand.parse("gated(hyde)").inner == Expander("hyde")
    nested = expand.parse("gated(gated(rm3, by=scores), by=overlap)")
    assert expand.parse(str(nested)) == nested


def test_a_gate_is_for_what_is_inside_it() -> None:
    assert expand.parse("gated(hyde)").kinds == ("dense",)
    assert expand.parse("gated(rm3)").kinds == ("bm25",)
    write, grade = Need(Write, task="query2doc"), Need(Grade, labels=("yes", "no"))
    assert expand.parse("gated(query2doc)").needs(BM25) == [write]
    assert expand.parse("gated(query2doc, by=grade)").needs(BM25) == [write, grade]
    assert expand.parse("gated(rm3, by=grade)").needs(BM25) == [grade]


def test_fused_scores_are_no_gate() -> None:
    both = NoIndex(BM25 | DENSE)
    with pytest.raises(SpecError, match="one first stage"):
        next(expand.parse("gated(query2doc, by=scores)").plan(QUERY, both))


@pytest.mark.parametrize(
    "text",
    [
        "gated",
        "gated(by=overlap)",
        "gated(nosuch)",
        "gated(query2doc@5)",
        "gated(query2doc, by=chance)",
        "gated(query2doc, k=-1)",
        "gated(query2doc, least=2)",
        "gated(query2doc, above=-1)",
        "gated(query2doc, above=2)",
        "gated(query2doc(n=0))",
        "query2doc(hyde)",
    ],
)
def test_what_cannot_be_read(text: str) -> None:
    with pytest.raises(SpecError):
        expand.parse(text)


@pytest.mark.parametrize("kinds", [BM25, DENSE])
@pytest.mark.parametrize("by", ["overlap", "grade", "scores"])
def test_without_an_index_nothing_is_asked(by: str, kinds: frozenset[Kind]) -> None:
    plan = expand.parse(f"gated(query2doc, by={by})").plan(Query("q", "dough"), NoIndex(kinds))
    with pytest.raises(NeedsIndex, match="--corpus"):
        next(plan)


@pytest.mark.parametrize("by", ["overlap", "scores"])
@pytest.mark.parametrize("inner", ["hyde(n=1)", "vector_prf", "gated(hyde(n=1))"])
def test_the_query_is_embedded_once(inner: str, by: str) -> None:
    model = Model("one")
    first = Toy({}, {"a": (3.0, 1.0), "b": (1.0, 0.0)})
    alone = drive(expand.parse(inner).plan(QUERY, first), Model("one"))
    found = drive(
        expand.parse(f"gated({inner}, by={by}, least=0, below=9)").plan(QUERY, first), model
    )
    assert found.expanded
    np.testing.assert_array_equal(vector_of(found), vector_of(alone))
    asked = [item for item in model.asks if isinstance(item, Embed)]
    assert [item.texts for item in asked if item.role == "query"] == [(QUERY.text,)]


def test_a_query_that_was_not_embedded_is_not_known() -> None:
    model = Tasks({"hyde": "one"})
    found = drive(expand.parse("gated(hyde(n=1))").plan(QUERY, Toy({}, {"a": (1.0, 0.0)})), model)
    assert (found.expanded, found.views) == (False, ())


def vector_of(expansion: Expansion) -> Vectors:
    (view,) = expansion.views
    assert view.vector is not None
    return view.vector
