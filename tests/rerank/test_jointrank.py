from __future__ import annotations

from math import ceil, sqrt
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrank.errors import SpecError
from llmrank.plan import Answer, Ask, Choice, Drive, Order, Permutation, Pick, drive
from llmrank.rerank.aggregation import AGGREGATORS
from llmrank.rerank.designs import DESIGNS
from llmrank.rerank.jointrank import jointrank
from llmrank.types import Query, Status
from tests.effort import examples, sizes
from tests.rerank.judges import FAILED, QUERY, Failing, Perfect, best_first, candidates, grades


def _calls(n: int, k: int, r: int, design: str) -> int:
    if n <= k:
        return 1
    if design == "latin":
        return 2 * ceil(sqrt(n)) - (n in (3, 5))
    if design == "triangular":
        return ceil((1 + sqrt(1 + 8 * n)) / 2)
    return ceil(n * r / k)


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("by", ["text", "labels"])
def test_calls_rounds_and_order(design: str, by: str) -> None:
    for n in sizes():
        judge = Perfect(found := grades(n))
        running = Drive(jointrank(QUERY, candidates(n), design=design, by=by))
        tickets = running.start()
        assert len(tickets) == (_calls(n, 20, 2, design) if n > 1 else 0)
        # The answers of the one round arrive in any order.
        for ticket in tickets[::-1]:
            running.answer(ticket, judge(ticket.ask))
        assert running.rounds == (n > 1)
        ordering = running.result
        assert sorted(ordering.order) == list(range(n))
        if n <= 20:
            assert list(ordering.order) == best_first(found)
        assert all(score is not None for score in ordering.scores) or n < 2
        ranked = [-(ordering.scores[i] or 0) for i in ordering.order]
        assert ranked == sorted(ranked)
        kind = Order if by == "text" else Pick
        assert all(isinstance(item, kind) for item in judge.asks)


@pytest.mark.parametrize("aggregate", AGGREGATORS)
@pytest.mark.parametrize(("k", "r"), [(20, 2), (5, 3), (2, 2)])
def test_aggregates(aggregate: str, k: int, r: int) -> None:
    for n in (0, 1, 2, 3, 20, 21, 40):
        judge = Perfect(found := grades(n))
        ordering = drive(jointrank(QUERY, candidates(n), k=k, r=r, aggregate=aggregate), judge)
        assert sorted(ordering.order) == list(range(n))
        assert len(judge.asks) == (_calls(n, k, r, "replicate") if n > 1 else 0)
        if n <= k:
            assert list(ordering.order) == best_first(found)


def test_blocks_are_shown_in_first_stage_order() -> None:
    judge = Perfect(grades(100))
    drive(jointrank(QUERY, candidates(100)), judge)
    for item in judge.asks:
        assert isinstance(item, Order)
        shown = [int(doc.id[1:]) for doc in item.docs]
        assert shown == sorted(shown)


def test_the_seed_and_the_query_decide_the_blocks() -> None:
    def blocks(query: str, seed: int) -> list[Ask[Any]]:
        judge = Perfect(grades(50))
        drive(jointrank(Query(query, "same"), candidates(50), seed=seed), judge)
        return judge.asks

    assert blocks("a", 0) == blocks("a", 0)
    assert blocks("a", 0) != blocks("a", 1)
    assert [item.docs for item in blocks("a", 0) if isinstance(item, Order)] != [
        item.docs for item in blocks("b", 0) if isinstance(item, Order)
    ]


@examples(60)
@given(
    st.integers(0, 45),
    st.sets(st.integers(0, 20)),
    st.sampled_from(list(DESIGNS)),
    st.sampled_from(list(AGGREGATORS)),
)
def test_failures_lose_nobody(n: int, failing: set[int], design: str, aggregate: str) -> None:
    judge = Failing(grades(n), failing)
    plan = jointrank(QUERY, candidates(n), k=10, design=design, aggregate=aggregate)
    ordering = drive(plan, judge)
    assert sorted(ordering.order) == list(range(n))
    answered = [item for i, item in enumerate(judge.asks) if i not in failing]
    seen = {doc.id for item in answered if isinstance(item, Order) for doc in item.docs}
    for i, score in enumerate(ordering.scores):
        assert (score is None) is (f"d{i}" not in seen)
        # Who was in failed blocks only keeps the first-stage place.
        assert score is not None or ordering.order[i] == i


@pytest.mark.parametrize("aggregate", AGGREGATORS)
@pytest.mark.parametrize("n", [2, 20, 100])
def test_when_everything_fails_the_first_stage_order_stays(aggregate: str, n: int) -> None:
    ordering = drive(jointrank(QUERY, candidates(n), aggregate=aggregate), lambda _: FAILED)
    assert ordering.order == tuple(range(n))
    assert ordering.scores == (None,) * n


def test_what_was_not_named_was_not_compared() -> None:
    def judge(item: Ask[Any]) -> Answer[Any]:
        return Answer(status=Status.PARTIAL, value=Permutation((3, 0, 1, 2), named=1))

    ordering = drive(jointrank(QUERY, candidates(4)), judge)
    assert ordering.order == (3, 0, 1, 2)
    assert ordering.scores[0] == ordering.scores[1] == ordering.scores[2]


def test_labels_without_probability_were_not_compared() -> None:
    def judge(item: Ask[Any]) -> Answer[Any]:
        return Answer(status=Status.OK, value=Choice((1,), (0.0, 1.0, 0.0)))

    ordering = drive(jointrank(QUERY, candidates(3), by="labels"), judge)
    assert ordering.order == (1, 0, 2)
    assert ordering.scores[0] == ordering.scores[2]


@pytest.mark.parametrize(
    "parameters",
    [
        {"k": 1},
        {"r": 1},
        {"r": 0},
        {"design": "square"},
        {"aggregate": "newman"},
        {"by": "touch"},
        {"k": 27, "by": "labels"},
    ],
)
def test_bad_parameters_are_refused_at_once(parameters: dict[str, Any]) -> None:
    with pytest.raises(SpecError):
        drive(jointrank(QUERY, (), **parameters), lambda _: FAILED)


def test_a_design_that_does_not_fit_says_what_does() -> None:
    with pytest.raises(SpecError, match="k >= 10 or the design replicate"):
        drive(jointrank(QUERY, candidates(100), k=9, design="latin"), lambda _: FAILED)
