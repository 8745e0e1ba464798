from __future__ import annotations

import math
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrank.errors import SpecError
from llmrank.plan import Answer, Ask, Choice, Pick, Plan, drive
from llmrank.rerank.pairwise import prp, prp_allpair, prp_heapsort, prp_soft
from llmrank.types import Candidate, Document, Ordering, Status
from tests.effort import examples, sizes
from tests.rerank.judges import (
    FAILED,
    QUERY,
    Failing,
    Perfect,
    best_first,
    candidates,
    grades,
    noisy,
    run,
)

PLANS: dict[str, Callable[..., Plan[Ordering]]] = {
    "prp": prp,
    "prp_allpair": prp_allpair,
    "prp_heapsort": prp_heapsort,
    "prp_soft": prp_soft,
}
FEW = [*range(34), 64, 100]


def _picks(first: float) -> Answer[Choice]:
    likely = (first, 1 - first)
    return Answer(status=Status.OK, value=Choice((int(first < 0.5),), likely))


@pytest.mark.parametrize(("sliding", "by"), [(2, "labels"), (10, "text")])
def test_prp_settles_a_place_a_pass(sliding: int, by: str) -> None:
    for n in sizes():
        judge = Perfect(found := grades(n))
        plan = prp(QUERY, candidates(n), sliding=sliding, by=by)
        ordering, _, rounds = run(plan, judge)
        sure, passes = min(n, sliding), max(0, min(sliding, n - 1))
        assert sorted(ordering.order) == list(range(n))
        assert list(ordering.order[:sure]) == best_first(found)[:sure]
        assert ordering.scores == (None,) * n
        assert len(judge.asks) == passes * (2 * n - 1 - passes)
        assert len(judge.asks) == 2 * sum(n - 1 - p for p in range(passes))
        assert rounds == (n + passes - 2 if n > 1 else 0)


def test_prp_with_as_many_passes_as_places_sorts() -> None:
    for n in FEW:
        found = grades(n, distinct=False)
        ordering, _, rounds = run(prp(QUERY, candidates(n), sliding=500), Perfect(found))
        assert list(ordering.order) == best_first(found)
        assert rounds == (2 * n - 3 if n > 1 else 0)


@examples(60)
@given(st.integers(0, 25), st.integers(1, 30), st.integers(0, 1000))
def test_prp_gives_what_one_pass_after_another_gives(n: int, sliding: int, seed: int) -> None:
    judge, pool = noisy(seed), candidates(n)

    def first_got(a: int, b: int) -> float | None:
        value: Choice | None = judge(Pick(QUERY, (pool[a].document, pool[b].document))).value
        return None if value is None else float(value.best[0] == 0)

    order = list(range(n))
    for done in range(min(sliding, n - 1)):
        for i in range(n - 1, done, -1):
            there, back = first_got(order[i - 1], order[i]), first_got(order[i], order[i - 1])
            if there is not None and back is not None and there < 0.5 < back:
                order[i - 1], order[i] = order[i], order[i - 1]
    assert list(drive(prp(QUERY, pool, sliding=sliding), judge).order) == order


@pytest.mark.parametrize("by", ["text", "labels"])
def test_allpair_counts_wins_in_one_round(by: str) -> None:
    for n in FEW if by == "text" else range(34):
        judge = Perfect(found := grades(n))
        ordering, _, rounds = run(prp_allpair(QUERY, candidates(n), by=by), judge)
        assert list(ordering.order) == best_first(found)
        assert ordering.scores == (tuple(map(float, found)) if n > 1 else (None,) * n)
        assert len(judge.asks) == n * (n - 1)
        assert rounds == (n > 1)


def test_allpair_counts_half_a_tie() -> None:
    # The first shown is always picked: every comparison is a tie.
    ordering = drive(prp_allpair(QUERY, candidates(4)), lambda _: _picks(1.0))
    assert ordering == Ordering((0, 1, 2, 3), (1.5,) * 4)
    # One of the two calls of every pair fails: no win either.
    judge = Failing(grades(4), set(range(0, 12, 2)))
    assert drive(prp_allpair(QUERY, candidates(4)), judge).scores == (1.5,) * 4
    # Labels that are equally likely are no opinion.
    ordering = drive(prp_allpair(QUERY, candidates(3), by="labels"), lambda _: _picks(0.5))
    assert ordering.scores == (1.0,) * 3


def test_by_labels_the_likelier_side_counts() -> None:
    def judge(item: Ask[Any]) -> Answer[Any]:
        assert isinstance(item, Pick)
        assert item.by == "labels"
        return _picks(0.51 if item.docs[0].id > item.docs[1].id else 0.49)

    assert drive(prp_allpair(QUERY, candidates(3), by="labels"), judge).scores == (0.0, 1.0, 2.0)


@pytest.mark.parametrize(("k", "by"), [(1, "labels"), (10, "text"), (200, "text")])
def test_heapsort_selects_the_top(k: int, by: str) -> None:
    for n in sizes() if k <= 10 else FEW:
        judge = Perfect(found := grades(n))
        ordering, _, rounds = run(prp_heapsort(QUERY, candidates(n), k=k, by=by), judge)
        sure, height = min(n, k), math.floor(math.log2(max(1, n)))
        assert list(ordering.order[:sure]) == best_first(found)[:sure]
        # The others follow in first-stage order.
        assert list(ordering.order[sure:]) == sorted(set(range(n)) - set(ordering.order[:sure]))
        assert len(judge.asks) <= max(0, 4 * (n - 1 + (sure - 1) * height))
        assert rounds <= height * (height + 2 * sure - 1)


def test_heapsort_builds_its_levels_side_by_side() -> None:
    # A heap in order already: two rounds a level, and none for taking out the root alone.
    judge = Perfect(range(64, 1, -1))
    *_, rounds = run(prp_heapsort(QUERY, candidates(63), k=1), judge)
    assert rounds == 2 * 5
    assert len(judge.asks) == 4 * 31


def test_heapsort_gives_ties_to_the_first_stage() -> None:
    for n in FEW:
        found = grades(n, distinct=False)
        ordering = drive(prp_heapsort(QUERY, candidates(n), k=200), Perfect(found))
        assert list(ordering.order) == best_first(found)


def test_soft_adds_up_probabilities() -> None:
    for n in FEW:
        judge = Perfect(found := grades(n))
        ordering, _, rounds = run(prp_soft(QUERY, candidates(n)), judge)
        assert list(ordering.order) == best_first(found)
        assert len(judge.asks) == n * (n - 1)
        assert rounds == (n > 1)
        assert all(isinstance(item, Pick) and item.by == "labels" for item in judge.asks)
    shares = {("d0", "d1"): 0.6, ("d1", "d0"): 0.75, ("d0", "d2"): 0.2, ("d2", "d0"): 0.9}

    def judge_three(item: Ask[Any]) -> Answer[Any]:
        assert isinstance(item, Pick)
        first, second = (doc.id for doc in item.docs)
        share = shares.get((first, second))
        return FAILED if share is None else _picks(share)

    ordering = drive(prp_soft(QUERY, candidates(3)), judge_three)
    assert ordering.order == (2, 1, 0)
    # Of the two calls about d1 and d2 both failed: half of each to both.
    assert ordering.scores == pytest.approx((1.15, 2.15, 2.7))


def test_soft_ties_are_exact() -> None:
    # The place alone counts, so all documents get the same shares, in different orders.
    ordering = drive(prp_soft(QUERY, candidates(30)), lambda _: _picks(0.1))
    assert ordering.order == tuple(range(30))
    assert len(set(ordering.scores)) == 1


@pytest.mark.parametrize("plan", [prp_allpair, prp_soft])
def test_who_was_never_judged_keeps_its_place(plan: Callable[..., Plan[Ordering]]) -> None:
    judge = Perfect(range(5))

    def without_d1(item: Ask[Any]) -> Answer[Any]:
        assert isinstance(item, Pick)
        return FAILED if "d1" in {doc.id for doc in item.docs} else judge(item)

    ordering = drive(plan(QUERY, candidates(5)), without_d1)
    assert ordering.order == (4, 1, 3, 2, 0)
    assert [score is None for score in ordering.scores] == [False, True, False, False, False]


@pytest.mark.parametrize("name", PLANS)
def test_when_everything_fails_the_first_stage_order_stays(name: str) -> None:
    for n in range(40):
        ordering = drive(PLANS[name](QUERY, candidates(n)), lambda _: FAILED)
        assert (ordering.order, ordering.scores) == (tuple(range(n)), (None,) * n)


@pytest.mark.parametrize("name", PLANS)
def test_one_opinion_out_of_two_moves_nobody(name: str) -> None:
    # In the worst order, every second call fails: no two calls agree.
    ordering = drive(PLANS[name](QUERY, candidates(9)), Failing(range(9), set(range(0, 1000, 2))))
    assert ordering.order == tuple(range(9)) or name == "prp_soft"


@examples(50)
@given(st.sampled_from(list(PLANS)), st.integers(0, 25), st.integers(0, 1000), st.randoms())
def test_the_order_of_the_answers_does_not_matter(
    name: str, n: int, seed: int, random: Random
) -> None:
    judge, plan = noisy(seed), PLANS[name]
    expected = drive(plan(QUERY, candidates(n)), judge)
    assert sorted(expected.order) == list(range(n))
    assert run(plan(QUERY, candidates(n)), judge, random).ordering == expected


@pytest.mark.parametrize("name", PLANS)
def test_equal_ids_and_texts_stay_apart(name: str) -> None:
    twins = [Candidate(Document(f"d{i % 3}", "the same"), 1.0) for i in range(6)]
    assert drive(PLANS[name](QUERY, twins), Perfect([0, 1, 2])).order == (2, 5, 1, 4, 0, 3)


@pytest.mark.parametrize(
    ("plan", "given"),
    [
        (prp, {"sliding": 0}),
        (prp, {"by": "logits"}),
        (prp_allpair, {"by": ""}),
        (prp_heapsort, {"k": 0}),
        (prp_heapsort, {"by": "words"}),
    ],
)
def test_bad_parameters_are_refused_at_once(
    plan: Callable[..., Plan[Ordering]], given: dict[str, object]
) -> None:
    with pytest.raises(SpecError):
        next(plan(QUERY, (), **given), None)
