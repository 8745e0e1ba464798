from __future__ import annotations

from math import ceil
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrank.errors import SpecError
from llmrank.plan import Answer, Ask, Permutation, drive
from llmrank.rerank.rating import acurank
from llmrank.types import Status
from tests.effort import examples
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


def test_calls_and_rounds_keep_to_the_budget() -> None:
    for count in (*range(12), *range(12, 131, 9)):
        judge = Perfect(found := grades(count))
        plan = acurank(QUERY, candidates(count), window=5, k=3, uncertain=3, budget=30)
        ordering, calls, rounds = run(plan, judge)
        assert sorted(ordering.order) == list(range(count))
        assert all(2 <= len(shown(item)) <= 5 for item in judge.asks)
        if count <= 5:
            assert (calls, rounds) == ((1, 1) if count > 1 else (0, 0))
            assert list(ordering.order) == best_first(found)
        else:
            assert ceil((count - 1) / 5) <= calls <= 30
            assert rounds <= 1 + 30 - ceil((count - 1) / 5)


@pytest.mark.parametrize("by", ["text", "labels"])
def test_one_window_is_one_call(by: str) -> None:
    for count in range(2, 21, 3):
        judge = Perfect(found := grades(count))
        ordering, calls, _ = run(acurank(QUERY, candidates(count), by=by), judge)
        assert calls == 1
        assert list(ordering.order) == best_first(found)


def test_a_perfect_judge_is_asked_about_ten_times() -> None:
    for seed in range(6):
        found = Random(seed).sample(range(100), 100)
        ordering, calls, rounds = run(acurank(QUERY, candidates(100)), Perfect(found))
        assert 9 <= calls <= 14
        assert rounds <= 7
        assert len(set(ordering.order[:10]) & set(best_first(found)[:10])) >= 9
        scores = [ordering.scores[i] or 0.0 for i in ordering.order]
        assert scores == sorted(scores, reverse=True)


def test_passes_ask_about_disjoint_windows() -> None:
    plan = acurank(QUERY, candidates(60))
    judge, passes = Perfect(grades(60)), list[list[list[str]]]()
    asked = next(plan)
    with pytest.raises(StopIteration):
        while True:
            passes.append([shown(item) for item in asked])
            together = [name for block in passes[-1] for name in block]
            assert len(set(together)) == len(together)
            asked = plan.send([judge(item) for item in asked])
    assert [len(block) for block in passes[0]] == [20, 20, 20]
    assert len(passes) > 2


@examples(25)
@given(
    st.integers(0, 60),
    st.integers(2, 10),
    st.integers(1, 30),
    st.integers(1, 12),
    st.integers(1, 20),
    st.integers(0, 999),
    st.sampled_from(["text", "labels"]),
)
def test_any_judge_comes_to_an_end(
    count: int, window: int, k: int, uncertain: int, budget: int, seed: int, by: str
) -> None:
    plan = acurank(
        QUERY,
        candidates(count),
        window=window,
        k=k,
        tolerance=1e-6,
        uncertain=uncertain,
        budget=budget,
        by=by,
    )
    ordering, calls, _ = run(plan, Erratic(seed))
    assert sorted(ordering.order) == list(range(count))
    assert calls <= budget


def test_when_everything_fails_one_pass_is_enough() -> None:
    for count in range(60):
        judge = Failing(range(count), set(range(999)))
        ordering, calls, rounds = run(acurank(QUERY, candidates(count), window=7), judge)
        assert ordering.order == tuple(range(count))
        assert ordering.scores == (None,) * count
        assert rounds <= 1
        assert calls == ceil(max(0, count - 1) / 7)


def test_documents_of_a_failed_window_are_asked_about_again() -> None:
    ordering, _, _ = run(acurank(QUERY, candidates(60)), Failing(range(60)[::-1], {0}))
    assert ordering.order[:4] == (0, 1, 2, 3)
    assert None not in ordering.scores


def test_documents_without_any_answer_keep_their_place() -> None:
    # Two calls for the three windows; the first fails and the third is never asked.
    judge = Failing(range(60), {0})
    ordering, calls, _ = run(acurank(QUERY, candidates(60), budget=2), judge)
    assert calls == 2
    assert ordering.order == (*range(20), *range(39, 19, -1), *range(40, 60))


def test_what_an_answer_leaves_out_is_tied_behind() -> None:
    def judge(item: Ask[Any]) -> Answer[Any]:
        return Answer(status=Status.PARTIAL, value=Permutation((3, 0, 1, 2), 1))

    ordering = drive(acurank(QUERY, candidates(4)), judge)
    assert ordering.order[0] == 3
    first, *others = (ordering.scores[i] or 0.0 for i in ordering.order)
    assert first > 25 > max(others)
    assert max(others) - min(others) < 1


def test_an_answer_that_says_nothing_is_a_failed_one() -> None:
    def judge(item: Ask[Any]) -> Answer[Any]:
        size = len(shown(item))
        return Answer(status=Status.PARTIAL, value=Permutation(tuple(range(size))[::-1], 0))

    assert drive(acurank(QUERY, candidates(50)), judge) == drive(
        acurank(QUERY, candidates(50)), lambda _: FAILED
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"window": 1},
        {"k": 0},
        {"tolerance": 0.0},
        {"tolerance": 0.5},
        {"tolerance": float("nan")},
        {"uncertain": 0},
        {"budget": 0},
        {"by": "x"},
        {"window": 27, "by": "labels"},
    ],
)
def test_wrong_parameters(wrong: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match="acurank"):
        next(acurank(QUERY, (), **wrong), None)
