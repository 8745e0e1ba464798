from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import permutations
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrank.errors import SpecError
from llmrank.plan import Answer, Ask, Drive, Grade, Order, Permutation, Plan, drive
from llmrank.rerank import METHODS
from llmrank.rerank.aggregation import wins
from llmrank.rerank.consistency import EXACT, kemeny, psc
from llmrank.rerank.listwise import sliding, starts
from llmrank.rerank.pointwise import yesno
from llmrank.rerank.setwise import setwise
from llmrank.types import Candidate, Ordering, Query, Status
from tests.effort import examples, sizes
from tests.rerank.judges import FAILED, QUERY, Failing, Perfect, best_first, candidates, grades

AGGREGATES = pytest.mark.parametrize("aggregate", ["kemeny", "borda", "rrf"])


def _inner(query: Query, found: Sequence[Candidate]) -> Plan[Ordering]:
    return sliding(query, found, window=5, stride=2)


@AGGREGATES
def test_calls_rounds_and_the_top(aggregate: str) -> None:
    samples = 3
    for n in sizes():
        judge = Perfect(found := grades(n))
        plan = psc(QUERY, candidates(n), rerank=_inner, samples=samples, aggregate=aggregate)
        running = Drive(plan)
        tickets = running.start()
        while tickets:
            answered = [(ticket, judge(ticket.ask)) for ticket in tickets]
            tickets = [new for t, answer in answered[::-1] for new in running.answer(t, answer)]
        calls = len(starts(n, 5, 2))
        assert running.rounds == calls
        assert len(judge.asks) <= samples * calls
        assert len(judge.asks) == samples * calls or n <= 5
        assert sorted(running.result.order) == list(range(n))
        sure = n if n <= 5 else 3
        assert list(running.result.order[:sure]) == best_first(found)[:sure]


def test_equal_shuffles_are_run_once() -> None:
    judge = Perfect([0, 1])
    ordering = drive(psc(QUERY, candidates(2), rerank=sliding, samples=50), judge)
    assert ordering.order == (1, 0)
    assert len(judge.asks) == 2
    shown = [[doc.id for doc in item.docs] for item in judge.asks if isinstance(item, Order)]
    assert shown == [["d0", "d1"], ["d1", "d0"]]


def test_the_first_sample_is_the_first_stage_order() -> None:
    judge = Perfect(found := grades(8))
    ordering = drive(psc(QUERY, candidates(8), rerank=sliding, samples=1), judge)
    (item,) = judge.asks
    assert isinstance(item, Order)
    assert [doc.id for doc in item.docs] == [f"d{i}" for i in range(8)]
    assert list(ordering.order) == best_first(found)


@AGGREGATES
def test_it_sees_through_a_bias_for_the_place(aggregate: str) -> None:
    # The one shown last always comes out first.
    found = [4, 3, 2, 1, 0]

    def judge(item: Ask[Any]) -> Answer[Any]:
        assert isinstance(item, Order)
        values = [found[int(doc.id[1:])] for doc in item.docs]
        best = best_first(values)
        last = len(values) - 1
        order = (last, *[i for i in best if i != last])
        return Answer(status=Status.OK, value=Permutation(order))

    once = drive(psc(QUERY, candidates(5), rerank=sliding, samples=1), judge)
    assert once.order == (4, 0, 1, 2, 3)
    plan = psc(QUERY, candidates(5), rerank=sliding, samples=300, aggregate=aggregate)
    assert drive(plan, judge).order == (0, 1, 2, 3, 4)


@AGGREGATES
@pytest.mark.parametrize("n", [2, 3, 10, 30])
def test_when_everything_fails_the_first_stage_order_stays(aggregate: str, n: int) -> None:
    plan = psc(QUERY, candidates(n), rerank=sliding, aggregate=aggregate)
    assert drive(plan, lambda _: FAILED) == Ordering(tuple(range(n)), (None,) * n, ranked=0)


@AGGREGATES
def test_failed_runs_are_no_evidence(aggregate: str) -> None:
    # Of ten runs of one call each, eight fail.
    judge = Failing(found := grades(12), set(range(1, 9)))
    plan = psc(QUERY, candidates(12), rerank=sliding, samples=10, aggregate=aggregate)
    assert list(drive(plan, judge).order) == best_first(found)


TOP = ["setwise", "setwise_bubblesort", "setwise_insertion", "prp_heapsort", "listt5"]


@AGGREGATES
@pytest.mark.parametrize("name", TOP)
def test_the_tail_of_a_top_k_method_is_no_opinion(name: str, aggregate: str) -> None:
    inner = partial(METHODS[name].plan, k=5)
    for n in (2, 5, 6, 9, 10, 11, 30, 55):
        found = best_first(grades(n))
        plan = psc(QUERY, candidates(n), rerank=inner, samples=7, aggregate=aggregate)
        ordering = drive(plan, Perfect(grades(n)))
        assert list(ordering.order[:5]) == found[:5]
        assert list(ordering.order[5:]) == sorted(found[5:])
        assert ordering.ranked == min(n, 5)


@AGGREGATES
def test_inside_one_another_only_the_top_counts(aggregate: str) -> None:
    inner = partial(psc, rerank=partial(setwise, k=3), samples=4, aggregate=aggregate)
    found = best_first(grades(14))
    plan = psc(QUERY, candidates(14), rerank=inner, samples=5, aggregate=aggregate)
    ordering = drive(plan, Perfect(grades(14)))
    assert list(ordering.order) == [*found[:3], *sorted(found[3:])]
    assert ordering.ranked == 3


@AGGREGATES
@given(st.sets(st.integers(0, 11)), st.integers(0, 40))
def test_who_never_has_an_answer_keeps_the_first_stage_place(
    aggregate: str, failing: set[int], seed: int
) -> None:
    found = Random(seed).sample(range(12), 12)
    perfect = Perfect(found)

    def judge(item: Ask[Any]) -> Answer[Any]:
        assert isinstance(item, Grade)
        return FAILED if int(item.doc.id[1:]) in failing else perfect(item)

    plan = psc(QUERY, candidates(12), rerank=yesno, samples=4, aggregate=aggregate, seed=seed)
    ordering = drive(plan, judge)
    known = sorted((i for i in range(12) if i not in failing), key=lambda i: -found[i])
    if len(known) < 2:
        assert ordering.order == tuple(range(12))
        return
    assert [i for i in ordering.order if i not in failing] == known
    assert all(ordering.order[i] == i and ordering.scores[i] is None for i in failing)


@AGGREGATES
@given(st.sets(st.integers(0, 59), max_size=20))
def test_an_answer_that_fails_in_one_run_leaves_the_others_right(
    aggregate: str, failing: set[int]
) -> None:
    # Calls 0 to 11 are of the first run, and so on: everybody has an answer in the last two.
    found = grades(12)
    failing = {i for i in failing if i < 36}
    plan = psc(QUERY, candidates(12), rerank=yesno, samples=5, aggregate=aggregate)
    ordering = drive(plan, Failing(found, failing))
    if aggregate == "kemeny":
        assert list(ordering.order) == best_first(found)
    assert sorted(ordering.order) == list(range(12))
    assert ordering.ranked == 12


def test_a_run_whose_shuffle_is_confirmed_is_a_ranking() -> None:
    # Whoever is shown first comes out first: both orders of two, and neither is the better.
    def judge(item: Ask[Any]) -> Answer[Any]:
        assert isinstance(item, Order)
        return Answer(status=Status.OK, value=Permutation(tuple(range(len(item.docs)))))

    plan = psc(QUERY, candidates(2), rerank=sliding, samples=40, aggregate="borda")
    ordering = drive(plan, judge)
    assert sum(score or 0.0 for score in ordering.scores) == pytest.approx(1.0)
    assert all(0.2 < (score or 0.0) < 0.8 for score in ordering.scores)


@examples(40)
@given(
    st.integers(0, 25),
    st.sets(st.integers(0, 60)),
    st.integers(1, 6),
    st.sampled_from(["kemeny", "borda", "rrf"]),
)
def test_failures_lose_nobody(n: int, failing: set[int], samples: int, aggregate: str) -> None:
    def run() -> Ordering:
        judge = Failing(grades(n), failing)
        plan = psc(QUERY, candidates(n), rerank=_inner, samples=samples, aggregate=aggregate)
        return drive(plan, judge)

    ordering = run()
    assert sorted(ordering.order) == list(range(n))
    assert len(ordering.scores) == n
    assert ordering == run()


def test_the_seed_and_the_query_decide_the_shuffles() -> None:
    def asks(query: str, seed: int) -> list[Any]:
        judge = Perfect(grades(15))
        drive(psc(Query(query, "same"), candidates(15), rerank=sliding, seed=seed), judge)
        return [item.docs for item in judge.asks if isinstance(item, Order)]

    assert asks("a", 0) == asks("a", 0)
    assert asks("a", 0) != asks("a", 1)
    assert asks("a", 0) != asks("b", 0)


def test_scores() -> None:
    def scores(aggregate: str) -> tuple[float | None, ...]:
        plan = psc(QUERY, candidates(3), rerank=sliding, samples=1, aggregate=aggregate)
        return drive(plan, Perfect([0, 1, 2])).scores

    assert scores("kemeny") == (None, None, None)
    assert scores("borda") == (0.0, 0.5, 1.0)
    assert scores("rrf") == pytest.approx((1 / 63, 1 / 62, 1 / 61))


@pytest.mark.parametrize("parameters", [{"samples": 0}, {"aggregate": "median"}])
def test_bad_parameters_are_refused_at_once(parameters: dict[str, Any]) -> None:
    with pytest.raises(SpecError):
        drive(psc(QUERY, (), rerank=sliding, **parameters), lambda _: FAILED)


def _disagreements(order: Sequence[int], votes: Sequence[tuple[Sequence[int], int]]) -> int:
    before = wins(votes, len(order))
    return sum(int(before[b, a]) for i, a in enumerate(order) for b in order[i + 1 :])


def _votes(n: int, count: int, seed: int) -> list[tuple[list[int], int]]:
    random = Random(seed)
    return [(random.sample(range(n), n), n) for _ in range(count)]


@examples(60)
@given(st.integers(1, 6), st.integers(1, 7), st.integers())
def test_kemeny_has_the_fewest_disagreements(n: int, count: int, seed: int) -> None:
    votes = _votes(n, count, seed)
    # Permutations come in ascending order, so the first of the best is the one to be found.
    best = min(permutations(range(n)), key=lambda order: _disagreements(order, votes))
    assert kemeny(votes, n) == best


@pytest.mark.parametrize("n", [EXACT + 1, 15])
def test_for_many_no_move_of_one_improves(n: int) -> None:
    votes = _votes(n, 5, n)
    order = list(kemeny(votes, n))
    cost = _disagreements(order, votes)
    for item in range(n):
        others = [i for i in order if i != item]
        for place in range(n):
            assert _disagreements([*others[:place], item, *others[place:]], votes) >= cost


@pytest.mark.parametrize("n", [EXACT, EXACT + 1, 40])
def test_votes_that_agree_are_followed(n: int) -> None:
    ((order, _),) = _votes(n, 1, n)
    assert kemeny([(order, n)] * 3, n) == tuple(order)
