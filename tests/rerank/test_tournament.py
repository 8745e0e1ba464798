from __future__ import annotations

from math import ceil, floor, log2
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrank.errors import SpecError
from llmrank.plan import Answer, Ask, Permutation, Pick, drive
from llmrank.rerank.tournament import listt5, schedule, tourrank
from llmrank.types import Ordering, Query, Status
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


def test_the_published_schedule() -> None:
    assert schedule(100, 20) == [(50, 5), (20, 5), (10, 1), (5, 1), (2, 1)]
    assert schedule(2, 20) == schedule(3, 20) == [(1, 1)]
    assert schedule(20, 20) == [(10, 1), (5, 1), (2, 1)]
    assert schedule(131, 20) == [(50, 7), (20, 5), (10, 1), (5, 1), (2, 1)]
    assert schedule(0, 20) == schedule(1, 20) == []


def test_every_group_fits_and_has_somebody_to_leave_out() -> None:
    for window in range(5, 27):
        for count in range(2, 400):
            left = count
            for survivors, groups in schedule(count, window):
                for group in range(groups):
                    size = len(range(group, left, groups))
                    assert 1 <= len(range(group, survivors, groups)) < size <= window
                left = survivors
            assert left <= 2


def _most_rounds(count: int) -> int:
    return max(1, ceil(log2(count)) - 1)


@pytest.mark.parametrize("by", ["text", "labels"])
@pytest.mark.parametrize(("tournaments", "window"), [(1, 20), (2, 5), (3, 26)])
def test_tournaments(tournaments: int, window: int, by: str) -> None:
    for count in sizes():
        judge = Perfect(found := grades(count))
        plan = tourrank(QUERY, candidates(count), tournaments=tournaments, window=window, by=by)
        ordering, calls, rounds = run(plan, judge)
        assert sorted(ordering.order) == list(range(count))
        stages = schedule(count, window)
        assert calls == tournaments * sum(groups for _, groups in stages)
        assert rounds == len(stages)
        if count < 2:
            continue
        first = ceil(count / window) + floor(2 * max(0, count - window) / window)
        assert calls <= tournaments * (first + _most_rounds(count) - 1)
        assert rounds <= _most_rounds(count)
        best = best_first(found)[0]
        scores = [score or 0.0 for score in ordering.scores]
        assert scores[best] == tournaments * len(stages) == max(scores)
        assert sum(scores) == tournaments * sum(s for s, _ in stages)


def test_a_hundred_documents_take_thirteen_calls_in_five_rounds() -> None:
    for seed in range(20):
        found = Random(seed).sample(range(100), 100)
        judge = Perfect(found)
        ordering, calls, rounds = run(tourrank(QUERY, candidates(100), seed=seed), judge)
        assert (calls, rounds) == (13, 5)
        assert set(ordering.order[:2]) == set(best_first(found)[:2])
        asked = [item.n for item in judge.asks if isinstance(item, Pick)]
        assert asked == [10] * 5 + [4] * 5 + [10, 5, 2]
    assert run(tourrank(QUERY, candidates(100), tournaments=10), Perfect(found))[1:] == (130, 5)


def test_the_seed_and_the_query_determine_the_groups() -> None:
    def groups(seed: int, query: Query = QUERY) -> list[list[str]]:
        judge = Perfect(grades(50))
        drive(tourrank(query, candidates(50), tournaments=2, seed=seed), judge)
        return [shown(item) for item in judge.asks]

    assert groups(0) == groups(0) != groups(1)
    assert groups(0) != groups(0, Query("other", "small query"))


def test_groups_without_an_answer_keep_the_first_stage_order() -> None:
    for count in range(60):
        plan = tourrank(QUERY, candidates(count), tournaments=2, window=7)
        nothing = Ordering(tuple(range(count)), (None,) * count)
        assert drive(plan, lambda _: FAILED) == nothing
    # Only the first of three groups fails: it sends 0, 3, 6, 9, 12, 15 and 18 on, as far as it may.
    judge = Failing(range(20), {0})
    ordering = drive(tourrank(QUERY, candidates(20), window=7), judge)
    assert schedule(20, 7)[0] == (10, 3)
    assert [i for i in range(0, 20, 3) if ordering.scores[i]] == [0, 3, 6, 9]
    assert [i for i in range(1, 20, 3) if ordering.scores[i]] == [13, 16, 19]
    assert all(ordering.scores[i] == 0 for i in (1, 4, 7, 10))
    # Who was in the failed group alone has no score and keeps its place.
    assert [i for i in range(20) if ordering.scores[i] is None] == [12, 15, 18]
    assert [ordering.order[i] for i in (12, 15, 18)] == [12, 15, 18]


@pytest.mark.parametrize("by", ["text", "labels"])
def test_a_second_tournament_scores_who_was_unheard_in_the_first(by: str) -> None:
    # The first round asks the three groups of either tournament: those of the first all fail.
    plan = tourrank(QUERY, candidates(20), window=7, tournaments=2, by=by)
    ordering = drive(plan, Failing(range(20), {0, 1, 2}))
    assert None not in ordering.scores


@examples(100)
@given(
    st.sampled_from(["tourrank", "listt5"]),
    st.integers(0, 130),
    st.integers(5, 26),
    st.integers(0, 999),
    st.sampled_from(["text", "labels"]),
)
def test_any_judge_will_do(name: str, count: int, size: int, seed: int, by: str) -> None:
    if name == "tourrank":
        plan = tourrank(QUERY, candidates(count), window=size, seed=seed, by=by)
        ordering, calls, _ = run(plan, Erratic(seed))
        assert calls == sum(groups for _, groups in schedule(count, size))
    else:
        r, k = 1 + seed % (size // 2), 1 + seed % 30
        ordering, calls, rounds = run(
            listt5(QUERY, candidates(count), m=size, r=r, k=k, by=by), Erratic(seed)
        )
        assert calls <= _listt5_calls(count, size, r, k)
        assert rounds <= _listt5_rounds(count, size, r, k)
    assert sorted(ordering.order) == list(range(count))


def _levels(count: int, m: int, r: int) -> int:
    return 1 + max(0, ceil(log2((max(count, m) - r) / (m - r)) / log2(m / r)))


def _listt5_calls(count: int, m: int, r: int, k: int) -> int:
    if count <= m:
        return 1
    levels = _levels(count, m, r)
    build = floor((count - r) / (m - r) + levels * (m + r - 1) / m)
    return build + (ceil(min(count, k) / r) - 1) * (1 + min(2, r) * r * (levels - 2))


def _listt5_rounds(count: int, m: int, r: int, k: int) -> int:
    levels = _levels(count, m, r)
    return levels + (ceil(min(count, k) / r) - 1) * (levels - 1)


@pytest.mark.parametrize(
    ("m", "r", "k"), [(5, 2, 10), (2, 1, 3), (20, 10, 30), (7, 3, 13), (4, 2, 200), (10, 1, 5)]
)
@pytest.mark.parametrize("by", ["text", "labels"])
def test_the_top_k_of_the_tree_are_exact(m: int, r: int, k: int, by: str) -> None:
    for count in sizes() if k < 100 else range(0, 131, 13):
        judge = Perfect(found := grades(count))
        plan = listt5(QUERY, candidates(count), m=m, r=r, k=k, by=by)
        ordering, calls, rounds = run(plan, judge)
        assert list(ordering.order[:k]) == best_first(found)[:k]
        assert list(ordering.order[k:]) == sorted(best_first(found)[k:])
        assert ordering.scores == (None,) * count
        assert all(2 <= len(shown(item)) <= m for item in judge.asks)
        if count < 2:
            assert not calls
        else:
            assert calls <= _listt5_calls(count, m, r, k)
            assert rounds <= _listt5_rounds(count, m, r, k)


def test_the_tree_is_built_once_and_then_only_paths_are_asked_again() -> None:
    building = run(listt5(QUERY, candidates(100), k=1), Perfect(range(100)))
    assert building[1:] == (34, 5)
    for seed in range(10):
        found = Random(seed).sample(range(100), 100)
        _, calls, rounds = run(listt5(QUERY, candidates(100)), Perfect(found))
        assert 50 <= calls <= 61
        assert rounds == 21


def test_no_call_of_the_tree_is_asked_twice() -> None:
    judge = Perfect(grades(100))
    drive(listt5(QUERY, candidates(100), k=30), judge)
    assert len(set(judge.asks)) == len(judge.asks)


def test_a_failed_call_of_the_tree_orders_by_the_first_stage() -> None:
    for count in range(60):
        plan = listt5(QUERY, candidates(count), k=17)
        assert drive(plan, lambda _: FAILED).order == tuple(range(count))

    # Leaves 0-4 and 5-9, the first fails.
    ordering, calls, _ = run(listt5(QUERY, candidates(10), k=4), Failing(range(10), {0}))
    assert ordering.order == (9, 8, 7, 6, 0, 1, 2, 3, 4, 5)
    assert calls == 4


def test_the_same_answers_give_the_same_order() -> None:
    def judge(item: Ask[Any]) -> Answer[Any]:
        names = shown(item)
        order = Random(" ".join(names)).sample(range(len(names)), len(names))
        return Answer(status=Status.OK, value=Permutation(tuple(order)))

    once = drive(listt5(QUERY, candidates(77)), judge)
    assert once == drive(listt5(QUERY, candidates(77)), judge)


@pytest.mark.parametrize(
    "wrong",
    [{"tournaments": 0}, {"window": 4}, {"window": 27}, {"by": "x"}],
)
def test_wrong_parameters_of_tourrank(wrong: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match="tourrank"):
        next(tourrank(QUERY, (), **wrong), None)


@pytest.mark.parametrize(
    "wrong",
    [{"m": 1, "r": 1}, {"r": 0}, {"r": 3}, {"k": 0}, {"by": "x"}, {"m": 27, "by": "labels"}],
)
def test_wrong_parameters_of_listt5(wrong: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match="listt5"):
        next(listt5(QUERY, (), **wrong), None)
