from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrank.errors import SpecError
from llmrank.plan import Answer, Ask, Choice, Pick, Plan, drive
from llmrank.rerank.setwise import setwise, setwise_bubblesort, setwise_insertion
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
    "setwise": setwise,
    "setwise_bubblesort": setwise_bubblesort,
    "setwise_insertion": setwise_insertion,
}
SIZES = [(3, 10, "text"), (4, 10, "labels"), (4, 1, "text"), (10, 3, "text"), (26, 40, "text")]


def _height(n: int, c: int) -> int:
    return math.floor(math.log2((c - 2) * n) / math.log2(c - 1)) if n else 0


def _heap_calls(n: int, c: int, k: int) -> int:
    height = _height(n, c)
    return (n - 1 + (c - 3) * height) // (c - 2) + (min(k, n) - 1) * height if n else 0


def _heap_rounds(n: int, c: int, k: int) -> int:
    height = _height(n, c)
    return height * (height + 1) // 2 + (min(k, n) - 1) * height


def _exact_top(ordering: Ordering, found: Sequence[int], sure: int) -> bool:
    assert sorted(ordering.order) == list(range(len(found)))
    assert ordering.scores == (None,) * len(found)
    return list(ordering.order[:sure]) == best_first(found)[:sure]


def _rest_in_first_stage_order(ordering: Ordering, top: int) -> bool:
    return list(ordering.order[top:]) == sorted(ordering.order[top:])


@pytest.mark.parametrize(("c", "k", "by"), SIZES)
def test_the_heap_selects_the_top(c: int, k: int, by: str) -> None:
    for n in sizes():
        judge = Perfect(found := grades(n))
        ordering, _, rounds = run(setwise(QUERY, candidates(n), c=c, k=k, by=by), judge)
        assert _exact_top(ordering, found, min(n, k))
        assert _rest_in_first_stage_order(ordering, min(n, k))
        assert len(judge.asks) <= _heap_calls(n, c, k)
        assert rounds <= _heap_rounds(n, c, k)
        assert all(isinstance(i, Pick) and len(i.docs) <= c and i.by == by for i in judge.asks)


def test_the_levels_of_the_heap_are_built_side_by_side() -> None:
    # Worst first: 1 + 3 + 9 + 27 documents, of which every parent has to sink to the bottom.
    judge = Perfect(range(40))
    *_, rounds = run(setwise(QUERY, candidates(40), c=4, k=1), judge)
    assert rounds == 1 + 2 + 3
    assert len(judge.asks) == 9 * 1 + 3 * 2 + 1 * 3
    judge = Perfect(range(40, 0, -1))
    *_, rounds = run(setwise(QUERY, candidates(40), c=4, k=1), judge)
    assert (rounds, len(judge.asks)) == (3, 13)


def test_a_heap_set_without_an_answer_goes_by_the_first_stage() -> None:
    # The set of all four fails: 0 comes out first; the answers after it are right.
    ordering = drive(setwise(QUERY, candidates(4), c=4, k=4), Failing(range(4), {0}))
    assert ordering.order == (0, 3, 2, 1)
    # 3 comes out; the set of the others fails: 0 comes out, then the better of the rest.
    ordering = drive(setwise(QUERY, candidates(4), c=4, k=4), Failing(range(4), {1}))
    assert ordering.order == (3, 0, 2, 1)


@pytest.mark.parametrize(("c", "k", "by"), [*SIZES, (2, 10, "text")])
def test_bubblesort_settles_a_place_a_pass(c: int, k: int, by: str) -> None:
    for n in sizes() if c > 3 and k <= 10 else range(0, 131, 5):
        judge = Perfect(found := grades(n))
        ordering, _, rounds = run(setwise_bubblesort(QUERY, candidates(n), c=c, k=k, by=by), judge)
        passes = max(0, min(k, n - 1))
        assert _exact_top(ordering, found, min(n, k))
        assert len(judge.asks) == sum(math.ceil((n - 1 - p) / (c - 1)) for p in range(passes))
        assert rounds <= max(0, 2 * passes - 2 + math.ceil((n - passes) / (c - 1)))


def test_bubblesort_by_labels_sorts_the_window() -> None:
    judge = Perfect(found := grades(20))
    ordering = drive(setwise_bubblesort(QUERY, candidates(20), c=20, k=1, by="labels"), judge)
    assert list(ordering.order) == best_first(found)
    assert len(judge.asks) == 1
    ordering = drive(setwise_bubblesort(QUERY, candidates(20), c=20, k=1), judge)
    best = best_first(found)[0]
    assert ordering.order == (best, *(i for i in range(20) if i != best))


def test_a_bubblesort_window_without_an_answer_keeps_its_order() -> None:
    # Windows over 7 with c=3: [4..7), [2..5), [0..3); the middle one fails.
    plan = setwise_bubblesort(QUERY, candidates(7), c=3, k=1)
    assert drive(plan, Failing(range(7), {1})).order == (2, 0, 1, 3, 6, 4, 5)


@examples(50)
@given(
    st.integers(0, 30),
    st.integers(2, 9),
    st.integers(1, 35),
    st.sampled_from(["text", "labels"]),
    st.integers(0, 1000),
)
def test_bubblesort_gives_what_one_pass_after_another_gives(
    n: int, c: int, k: int, by: str, seed: int
) -> None:
    judge, pool = noisy(seed), candidates(n)
    order = list(range(n))
    for done in range(min(k, n - 1)):
        end = n - 1
        while end > done:
            start = max(done, end - c + 1)
            window = order[start : end + 1]
            item = Pick(QUERY, tuple(pool[i].document for i in window), by=by)  # type: ignore[arg-type]
            choice: Choice | None = judge(item).value
            if choice and choice.probabilities:
                likely = dict(zip(window, choice.probabilities, strict=True))
                order[start : end + 1] = sorted(window, key=lambda i: -likely[i])
            elif choice:
                order.insert(start, order.pop(start + choice.best[0]))
            end = start
    plan = setwise_bubblesort(QUERY, pool, c=c, k=k, by=by)
    assert list(drive(plan, judge).order) == order


@pytest.mark.parametrize(("c", "k", "by"), SIZES)
def test_insertion_keeps_the_top_sorted(c: int, k: int, by: str) -> None:
    for n in sizes():
        judge = Perfect(found := grades(n))
        ordering, _, rounds = run(setwise_insertion(QUERY, candidates(n), c=c, k=k, by=by), judge)
        head = min(n, k)
        assert _exact_top(ordering, found, head)
        assert _rest_in_first_stage_order(ordering, head)
        step = 1 + math.ceil(math.log2(max(1, head)))
        assert len(judge.asks) <= _heap_calls(head, c, k) + (n - head) * step
        assert rounds <= _heap_rounds(head, c, k) + (n - head) * step


def test_insertion_asks_least_where_the_first_stage_is_right() -> None:
    for n in sizes()[10:]:
        judge = Perfect(range(n, 0, -1))
        drive(setwise_insertion(QUERY, candidates(n), c=4, k=10), judge)
        sorting = Perfect(range(n, 0, -1))
        drive(setwise(QUERY, candidates(10), c=4, k=10), sorting)
        assert len(judge.asks) == len(sorting.asks) + math.ceil((n - 10) / 3)


def test_insertion_shows_the_kth_first_and_goes_on_until_it_wins() -> None:
    judge = Perfect([9, 8, 5, 7, 6, 10])
    ordering = drive(setwise_insertion(QUERY, candidates(6), c=3, k=2), judge)
    assert ordering.order == (5, 0, 1, 2, 3, 4)
    shown = [tuple(doc.id for doc in item.docs) for item in judge.asks if isinstance(item, Pick)]
    # Sort 0 and 1; 2 and 3 lose to 1; 5 beats 1 and then 0; 4 alone loses to 0.
    assert shown == [
        ("d0", "d1"),
        ("d1", "d2", "d3"),
        ("d1", "d4", "d5"),
        ("d0", "d5"),
        ("d0", "d4"),
    ]


def test_insertion_without_an_answer_leaves_the_top_ahead() -> None:
    found = [9, 8, 5, 7, 6, 10]
    plan = setwise_insertion(QUERY, candidates(6), c=3, k=2)
    assert drive(plan, Failing(found, {2})).order == (0, 1, 2, 3, 4, 5)
    # The search fails: 5 has beaten the 2nd, but goes no higher.
    plan = setwise_insertion(QUERY, candidates(6), c=3, k=2)
    assert drive(plan, Failing(found, {3})).order == (0, 5, 1, 2, 3, 4)


@pytest.mark.parametrize("name", ["setwise", "setwise_bubblesort"])
@pytest.mark.parametrize("by", ["text", "labels"])
def test_every_set_is_voted_on_in_one_round(name: str, by: str) -> None:
    for n in range(0, 131, 13):
        one, five = Perfect(found := grades(n)), Perfect(found)
        ordering, _, rounds = run(PLANS[name](QUERY, candidates(n), by=by), one)
        voted = run(PLANS[name](QUERY, candidates(n), by=by, votes=5), five)
        assert (voted.ordering, voted.rounds) == (ordering, rounds)
        assert len(five.asks) == 5 * len(one.asks)


@pytest.mark.parametrize("by", ["text", "labels"])
def test_votes_outvote_a_bias_against_the_last_place(by: str) -> None:
    # The best, d2, is picked but where it is shown last; then it is whatever is shown first.
    def judge(item: Ask[Any]) -> Answer[Any]:
        assert isinstance(item, Pick)
        assert sorted(doc.id for doc in item.docs) == ["d0", "d1", "d2"]
        best = 0 if item.docs[2].id == "d2" else [doc.id for doc in item.docs].index("d2")
        likely = tuple(0.8 if place == best else 0.1 for place in range(3))
        return Answer(status=Status.OK, value=Choice((best,), likely if by == "labels" else None))

    assert drive(setwise_bubblesort(QUERY, candidates(3), k=1, by=by), judge).order[0] == 0
    plan = setwise_bubblesort(QUERY, candidates(3), k=1, by=by, votes=15)
    assert drive(plan, judge).order[0] == 2


def test_a_tie_of_votes_goes_to_the_first_stage() -> None:
    seen: set[int] = set()
    for seed in range(40):
        picked: list[str] = []

        def note(item: Ask[Any], picked: list[str] = picked) -> Answer[Any]:
            assert isinstance(item, Pick)
            picked.append(item.docs[0].id)
            return Answer(status=Status.OK, value=Choice((0,)))

        order = drive(setwise(QUERY, candidates(3), k=1, votes=2, seed=seed), note).order
        # Twice the same document, or one vote each, where the earlier one has to win.
        assert order[0] == int(min(picked)[1])
        seen.add(order[0])
    assert seen == {0, 1, 2}


def test_failed_votes_do_not_count() -> None:
    judge = Failing(range(4), {0, 2})
    assert drive(setwise(QUERY, candidates(4), k=1, votes=3), judge).order[0] == 3


@pytest.mark.parametrize("name", PLANS)
def test_ties_go_to_the_earlier_first_stage_rank(name: str) -> None:
    for n in range(60):
        found = grades(n, distinct=False)
        ordering = drive(PLANS[name](QUERY, candidates(n)), Perfect(found))
        assert list(ordering.order[:10]) == best_first(found)[:10]


@pytest.mark.parametrize("name", PLANS)
def test_when_everything_fails_the_first_stage_order_stays(name: str) -> None:
    for n in range(60):
        ordering = drive(PLANS[name](QUERY, candidates(n)), lambda _: FAILED)
        assert ordering == Ordering(tuple(range(n)), (None,) * n, ranked=min(n, 10))


@pytest.mark.parametrize("name", PLANS)
def test_it_settles_the_top_k(name: str) -> None:
    for n in range(30):
        ordering = drive(PLANS[name](QUERY, candidates(n), k=5), Perfect(grades(n)))
        assert ordering.ranked == ordering.settled == min(n, 5)


@examples(50)
@given(
    st.sampled_from(list(PLANS)),
    st.sampled_from([{}, {"votes": 3}, {"votes": 2, "seed": 5}]),
    st.sampled_from(["text", "labels"]),
    st.integers(0, 40),
    st.integers(0, 1000),
    st.randoms(),
)
def test_the_order_of_the_answers_does_not_matter(
    name: str, votes: dict[str, int], by: str, n: int, seed: int, random: Random
) -> None:
    given = {"by": by, **(votes if name != "setwise_insertion" else {})}
    judge = noisy(seed)
    expected = drive(PLANS[name](QUERY, candidates(n), **given), judge)
    assert sorted(expected.order) == list(range(n))
    assert run(PLANS[name](QUERY, candidates(n), **given), judge, random).ordering == expected


@pytest.mark.parametrize("name", PLANS)
def test_equal_ids_and_texts_stay_apart(name: str) -> None:
    twins = [Candidate(Document(f"d{i % 3}", "the same"), 1.0) for i in range(6)]
    for k in (3, 10):
        ordering = drive(PLANS[name](QUERY, twins, k=k), Perfect([0, 1, 2]))
        assert ordering.order[:3] == (2, 5, 1)
    assert ordering.order == (2, 5, 1, 4, 0, 3)


@pytest.mark.parametrize(
    ("plan", "given"),
    [
        (setwise, {"c": 2}),
        (setwise, {"c": 27}),
        (setwise, {"k": 0}),
        (setwise, {"votes": 0}),
        (setwise, {"by": "logits"}),
        (setwise_bubblesort, {"c": 1}),
        (setwise_bubblesort, {"c": 27}),
        (setwise_bubblesort, {"k": 0}),
        (setwise_bubblesort, {"votes": 0}),
        (setwise_insertion, {"c": 2}),
        (setwise_insertion, {"c": 27}),
        (setwise_insertion, {"k": 0}),
        (setwise_insertion, {"by": "words"}),
    ],
)
def test_bad_parameters_are_refused_at_once(
    plan: Callable[..., Plan[Ordering]], given: dict[str, object]
) -> None:
    with pytest.raises(SpecError):
        next(plan(QUERY, (), **given), None)
