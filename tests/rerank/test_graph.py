from __future__ import annotations

from math import ceil
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrank.errors import SpecError
from llmrank.plan import Answer, Ask, Permutation, drive
from llmrank.rerank.graph import blitz
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


def _most_calls(count: int, k: int, m: int) -> int:
    return 1 if count <= k else min(m, count) * ceil((count - 1) / (k - 1))


@pytest.mark.parametrize(
    ("k", "m", "by"), [(20, 10, "text"), (20, 10, "labels"), (7, 1, "text"), (9, 4, "text")]
)
def test_the_top_m_are_exact(k: int, m: int, by: str) -> None:
    for count in sizes():
        judge = Perfect(found := grades(count))
        ordering, calls, rounds = run(blitz(QUERY, candidates(count), k=k, m=m, by=by), judge)
        assert sorted(ordering.order) == list(range(count))
        assert list(ordering.order[:m]) == best_first(found)[:m]
        assert calls <= (_most_calls(count, k, m) if count > 1 else 0)
        # The whole blocks of the first round wait for one another no more.
        assert rounds <= calls - max(0, count // k - 1)
        assert all(2 <= len(shown(item)) <= k for item in judge.asks)
        if m == 1 and count > 1:
            assert calls == ceil((count - 1) / (k - 1))


@pytest.mark.parametrize(("k", "fewest", "most"), [(20, 6, 7), (10, 12, 16)])
def test_the_published_number_of_calls(k: int, fewest: int, most: int) -> None:
    for seed in range(30):
        found = Random(seed).sample(range(100), 100)
        assert fewest <= run(blitz(QUERY, candidates(100), k=k), Perfect(found))[1] <= most


def test_25_horses_take_the_known_7_races() -> None:
    for seed in range(50):
        found = Random(seed).sample(range(25), 25)
        ordering, calls, rounds = run(blitz(QUERY, candidates(25), k=5, m=3), Perfect(found))
        assert list(ordering.order[:3]) == best_first(found)[:3]
        assert (calls, rounds) == (7, 3)


def test_all_are_shown_before_any_is_shown_again() -> None:
    plan = blitz(QUERY, candidates(100))
    blocks = [shown(item) for item in next(plan)]
    assert [block[:2] for block in blocks] == [[f"d{i}", f"d{i + 5}"] for i in range(5)]
    assert sorted(name for block in blocks for name in block) == sorted(f"d{i}" for i in range(100))


class Noisy(Perfect):
    """Sees grades with an error that is new in every call."""

    def value(self, item: Ask[Any]) -> object:
        random = Random(str(shown(item)))
        seen = [round(1e6 * (self.grades[name] + random.gauss(0, 10))) for name in shown(item)]
        return Permutation(tuple(best_first(seen)))


def test_errors_of_the_judge_cost_few_places() -> None:
    kept = []
    for seed in range(30):
        found = Random(seed).sample(range(100), 100)
        ordering = drive(blitz(QUERY, candidates(100)), Noisy(found))
        kept.append(sum(found[i] >= 90 for i in ordering.order[:10]))
    assert sum(kept) / len(kept) >= 6.6


def test_small_blocks_sort_completely() -> None:
    for count in range(2, 25):
        judge = Perfect(found := grades(count))
        ordering, calls, _ = run(blitz(QUERY, candidates(count), k=2, m=count), judge)
        assert list(ordering.order) == best_first(found)
        assert calls <= count * (count - 1) // 2
        better = [count - 1 - 2 * place for place in range(count)]
        assert [ordering.scores[i] for i in ordering.order] == better


@examples(60)
@given(
    st.integers(0, 80), st.integers(2, 26), st.integers(1, 20), st.integers(0, 999), st.booleans()
)
def test_any_judge_comes_to_an_end(count: int, k: int, m: int, seed: int, labels: bool) -> None:
    by = "labels" if labels else "text"
    ordering, calls, rounds = run(blitz(QUERY, candidates(count), k=k, m=m, by=by), Erratic(seed))
    assert sorted(ordering.order) == list(range(count))
    assert calls <= _most_calls(count, k, m)
    assert rounds <= _most_calls(count, k, m) - max(0, count // k - 1)


def test_a_contradiction_is_a_tie_in_the_order_of_direct_wins() -> None:
    replies: dict[tuple[str, ...], tuple[int, ...]]
    replies = {("d0", "d1", "d2"): (0, 1, 2), ("d3", "d0", "d1"): (2, 0, 1)}

    def judge(item: Ask[Any]) -> Answer[Any]:
        return Answer(status=Status.OK, value=Permutation(replies[tuple(shown(item))]))

    ordering = drive(blitz(QUERY, candidates(4), k=3, m=4), judge)
    assert ordering.order == (1, 3, 0, 2)
    assert ordering.scores == pytest.approx((1 - 1 / 13, 1 + 1 / 13, -3, 1))


def test_unnamed_documents_are_not_compared_with_one_another() -> None:
    def judge(item: Ask[Any]) -> Answer[Any]:
        return Answer(status=Status.PARTIAL, value=Permutation((2, 1, 0, 3), 2))

    ordering = drive(blitz(QUERY, candidates(4), k=4, m=2), judge)
    assert ordering.order == (2, 1, 0, 3)
    assert ordering.scores == (-2.0, 1.0, 3.0, -2.0)


def test_when_everything_fails_each_document_is_shown_twice() -> None:
    for count in range(60):
        judge = Failing(range(count), set(range(999)))
        ordering, calls, _ = run(blitz(QUERY, candidates(count), k=10), judge)
        assert ordering.order == tuple(range(count))
        assert ordering.scores == (None,) * count
        assert calls <= 2 * ceil(count / 9)


def test_a_failed_call_costs_no_place_at_the_top() -> None:
    for failed in range(6):
        for seed in range(10):
            found = Random(seed).sample(range(100), 100)
            ordering, calls, _ = run(blitz(QUERY, candidates(100)), Failing(found, {failed}))
            assert list(ordering.order[:10]) == best_first(found)[:10]
            assert calls <= 10


def test_an_answer_that_says_nothing_is_a_failed_one() -> None:
    def judge(item: Ask[Any]) -> Answer[Any]:
        size = len(shown(item))
        return Answer(status=Status.PARTIAL, value=Permutation(tuple(range(size)), 0))

    assert drive(blitz(QUERY, candidates(50)), judge) == drive(
        blitz(QUERY, candidates(50)), lambda _: FAILED
    )


@pytest.mark.parametrize("wrong", [{"k": 1}, {"m": 0}, {"by": "x"}, {"k": 27, "by": "labels"}])
def test_wrong_parameters(wrong: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match="blitz"):
        next(blitz(QUERY, (), **wrong), None)
