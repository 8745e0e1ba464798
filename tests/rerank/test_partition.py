from __future__ import annotations

from math import ceil
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrank.errors import SpecError
from llmrank.plan import Answer, Ask, Choice, Drive, Order, Permutation, Pick, Plan, drive
from llmrank.rerank.partition import tdpart
from llmrank.types import Ordering, Status
from tests.rerank.judges import FAILED, QUERY, Failing, Perfect, best_first, candidates, grades


class Erratic(Perfect):
    """Answers at random: any order, often only a part of it, and sometimes nothing."""

    def __init__(self, seed: int, failures: float = 0.2) -> None:
        super().__init__([])
        self.rng, self.failures = Random(seed), failures

    def __call__(self, item: Ask[Any]) -> Answer[Any]:
        answer = super().__call__(item)
        return FAILED if self.rng.random() < self.failures else answer

    def value(self, item: Ask[Any]) -> object:
        assert isinstance(item, Order | Pick)
        size = len(item.docs)
        order = tuple(self.rng.sample(range(size), size))
        if isinstance(item, Order):
            return Permutation(order, self.rng.choice([None, self.rng.randint(0, size)]))
        if item.by == "text":
            return Choice(order[: self.rng.randint(0, item.n)])
        return Choice(order[: item.n], tuple(self.rng.choice([0.0, 0.1, 0.2]) for _ in order))


def shown(item: Ask[Any]) -> list[str]:
    """The ids of the documents of an ask, as they stand there."""
    assert isinstance(item, Order | Pick)
    return [document.id for document in item.docs]


def run(plan: Plan[Ordering], judge: Perfect) -> tuple[Ordering, int, int]:
    """The result, the calls and the rounds."""
    driven = Drive(plan)
    tickets = driven.start()
    while tickets:
        answered = [(ticket, judge(ticket.ask)) for ticket in tickets]
        tickets = [new for ticket, given in answered for new in driven.answer(ticket, given)]
    return driven.result, len(judge.asks), driven.rounds


def _levels(count: int, window: int, pivot: int) -> int:
    return ceil(max(0, count - window) / (window - pivot + 1))


def _most_calls(count: int, window: int, pivot: int) -> int:
    return 1 + _levels(count, window, pivot) * (1 + ceil(max(0, count - window) / (window - 1)))


@pytest.mark.parametrize(("window", "pivot"), [(20, 10), (5, 1), (2, 1), (6, 3), (7, 7)])
@pytest.mark.parametrize("by", ["text", "labels"])
def test_the_top_down_to_the_pivot_is_exact(window: int, pivot: int, by: str) -> None:
    for count in range(131):
        judge = Perfect(found := grades(count))
        plan = tdpart(QUERY, candidates(count), window=window, pivot=pivot, by=by)
        ordering, calls, rounds = run(plan, judge)
        assert sorted(ordering.order) == list(range(count))
        assert ordering.scores == (None,) * count
        if count < 2:
            assert not calls
            continue
        assert calls <= _most_calls(count, window, pivot)
        assert rounds <= 1 + 2 * _levels(count, window, pivot)
        assert all(2 <= len(shown(item)) <= window for item in judge.asks)
        sure = count if count <= window else pivot
        assert list(ordering.order[:sure]) == best_first(found)[:sure]
        if count <= window:
            assert calls == 1


def test_nothing_is_lost_when_all_beyond_the_window_are_better() -> None:
    ordering, calls, rounds = run(tdpart(QUERY, candidates(100)), Perfect(range(100)))
    assert ordering.order[:10] == tuple(range(99, 89, -1))
    assert (calls, rounds) == (16, 7)


def test_a_hundred_documents_take_ten_calls_on_average() -> None:
    calls = 0
    for seed in range(30):
        found = Random(seed).sample(range(100), 100)
        calls += run(tdpart(QUERY, candidates(100)), Perfect(found))[1]
    assert 9 <= calls / 30 <= 10.5


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 130), st.integers(2, 26), st.data(), st.integers(0, 999), st.booleans())
def test_any_judge_comes_to_an_end(
    count: int, window: int, data: st.DataObject, seed: int, labels: bool
) -> None:
    pivot = data.draw(st.integers(1, window))
    by = "labels" if labels else "text"
    plan = tdpart(QUERY, candidates(count), window=window, pivot=pivot, by=by)
    ordering, calls, rounds = run(plan, Erratic(seed))
    assert sorted(ordering.order) == list(range(count))
    assert calls <= _most_calls(count, window, pivot)
    assert rounds <= 1 + 2 * _levels(count, window, pivot)


def test_when_everything_fails_the_first_stage_order_stays() -> None:
    for count in range(60):
        ordering = drive(tdpart(QUERY, candidates(count)), lambda _: FAILED)
        assert ordering.order == tuple(range(count))


def test_a_failed_group_stays_behind_the_pivot() -> None:
    # Window 0-3, pivot 2; groups 4-6 and 7-9 with it, the second fails.
    judge = Failing([3, 1, 2, 0, 9, -1, 8, 99, 98, 97], {2})
    ordering, calls, rounds = run(tdpart(QUERY, candidates(10), window=4, pivot=2), judge)
    assert ordering.order == (4, 6, 0, 2, 1, 3, 5, 7, 8, 9)
    assert (calls, rounds) == (4, 3)


def test_a_failed_first_window_keeps_its_order_and_its_pivot() -> None:
    judge = Failing([3, 1, 2, 0, 9, -1, 8], {0})
    ordering = drive(tdpart(QUERY, candidates(7), window=4, pivot=2), judge)
    assert ordering.order == (4, 6, 0, 1, 2, 3, 5)


def test_only_named_documents_rise_above_an_unnamed_pivot() -> None:
    def judge(item: Ask[Any]) -> Answer[Any]:
        names = shown(item)
        if names == ["d1", "d4", "d5", "d6"]:
            return Answer(status=Status.PARTIAL, value=Permutation((2, 0, 1, 3), 1))
        return Answer(status=Status.OK, value=Permutation(tuple(range(len(names)))))

    ordering = drive(tdpart(QUERY, candidates(7), window=4, pivot=2), judge)
    assert ordering.order == (0, 5, 1, 2, 3, 4, 6)


@pytest.mark.parametrize(
    "wrong",
    [
        {"window": 1, "pivot": 1},
        {"pivot": 0},
        {"pivot": 21},
        {"by": "x"},
        {"window": 27, "by": "labels"},
    ],
)
def test_wrong_parameters(wrong: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match="tdpart"):
        next(tdpart(QUERY, (), **wrong), None)
