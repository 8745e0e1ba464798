from __future__ import annotations

from math import ceil
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrank.errors import SpecError
from llmrank.plan import Answer, Ask, Permutation, drive
from llmrank.rerank.partition import tdpart
from llmrank.types import Status
from tests.effort import examples, sizes
from tests.rerank.judges import (
    FAILED,
    QUERY,
    Erratic,
    Failing,
    Perfect,
    best_first,
    candidates,
    grades,
    run,
    shown,
)


def _levels(count: int, window: int, pivot: int) -> int:
    return ceil(max(0, count - window) / (window - pivot + 1))


def _most_calls(count: int, window: int, pivot: int) -> int:
    return 1 + _levels(count, window, pivot) * (1 + ceil(max(0, count - window) / (window - 1)))


@pytest.mark.parametrize(("window", "pivot"), [(20, 10), (5, 1), (2, 1), (6, 3), (7, 7)])
@pytest.mark.parametrize("by", ["text", "labels"])
def test_the_top_down_to_the_pivot_is_exact(window: int, pivot: int, by: str) -> None:
    for count in sizes():
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


@examples(150)
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


def test_the_pivot_stands_in_the_last_window_if_there_is_room() -> None:
    replies: dict[tuple[str, ...], tuple[int, ...]] = {
        ("d0", "d1", "d2", "d3"): (0, 1, 2, 3),
        ("d1", "d4"): (1, 0),
        ("d0", "d4", "d1"): (2, 0, 1),
        ("d1", "d4", "d5", "d6"): (1, 2, 3, 0),
        ("d0", "d4", "d5", "d6"): (3, 2, 1, 0),
    }

    def judge(item: Ask[Any]) -> Answer[Any]:
        return Answer(status=Status.OK, value=Permutation(replies[tuple(shown(item))]))

    room = drive(tdpart(QUERY, candidates(5), window=4, pivot=2), judge)
    assert room.order == (1, 0, 4, 2, 3)
    full = drive(tdpart(QUERY, candidates(7), window=4, pivot=2), judge)
    assert full.order == (6, 5, 4, 0, 1, 2, 3)


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
