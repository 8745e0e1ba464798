from __future__ import annotations

import math
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrank.errors import SpecError
from llmrank.plan import Answer, Ask, Drive, Order, Permutation, drive
from llmrank.rerank import parse
from llmrank.rerank.adaptive import cross_sections
from llmrank.types import Status
from tests.effort import sizes
from tests.rerank.judges import FAILED, QUERY, Failing, Perfect, best_first, candidates, grades


@pytest.mark.parametrize("by", ["text", "labels"])
@pytest.mark.parametrize(
    ("k", "cover", "then"), [(20, 1, "2+2"), (10, 3, "0"), (5, 2, "1"), (2, 1, "3"), (6, 1, "half")]
)
def test_every_count_is_judged_within_the_schedule(k: int, cover: int, then: str, by: str) -> None:
    method = parse(f"adaptive(k={k}, cover={cover}, then={then}, by={by})@200")
    for count in sizes() if k == 20 and by == "text" else range(0, 131, 13):
        judge = Perfect(grades(count))
        running = Drive(method.plan(QUERY, candidates(count)))
        tickets = running.start()
        while tickets:
            answers = [(ticket, judge(ticket.ask)) for ticket in tickets]
            tickets = [new for ticket, answer in answers for new in running.answer(ticket, answer)]
        assert sorted(running.result.order) == list(range(count))
        if count < 2:
            assert not judge.asks
        elif count <= k:
            assert (len(judge.asks), running.rounds) == (1, 1)
        elif then == "half":
            blocks = math.ceil(count / k)
            assert len(judge.asks) == 2 * blocks - 1
            assert running.rounds <= 1 + math.floor(math.log2(blocks))
        else:
            further = [int(part) for part in then.split("+") if int(part)]
            assert len(judge.asks) <= cover * math.ceil(count / k) + sum(further)
            assert running.rounds == 1 + len(further)


def test_later_rounds_halve() -> None:
    for count, blocks in ((40, [2, 1]), (100, [5, 3, 1]), (200, [10, 5, 3, 1])):
        running = Drive(parse("adaptive@200").plan(QUERY, candidates(count)))
        tickets, judge, found = running.start(), Perfect(grades(count)), []
        while tickets:
            found.append(len(tickets))
            answers = [(ticket, judge(ticket.ask)) for ticket in tickets]
            tickets = [new for ticket, answer in answers for new in running.answer(ticket, answer)]
        assert found == blocks


def test_a_perfect_judge_puts_the_best_on_top_of_a_hundred() -> None:
    found = []
    for seed in range(10):
        order = list(range(100))
        Random(seed).shuffle(order)
        ranked = drive(parse("adaptive").plan(QUERY, candidates(100)), Perfect(order))
        found.append(len(set(ranked.order[:10]) & set(best_first(order)[:10])))
    assert np.mean(found) > 9


@given(st.integers(1, 400), st.integers(2, 30), st.integers(1, 4))
def test_cross_sections_cover_evenly(count: int, k: int, cover: int) -> None:
    blocks = cross_sections(count, k, cover)
    assert all(len(block) == len(set(block)) <= k and block == sorted(block) for block in blocks)
    assert sorted(item for block in blocks for item in block) == sorted(list(range(count)) * cover)
    assert len(blocks) == cover * math.ceil(count / k)
    assert max(map(len, blocks)) - min(map(len, blocks)) <= 1


def test_failures_are_no_evidence() -> None:
    ordering = drive(parse("adaptive").plan(QUERY, candidates(60)), lambda _: FAILED)
    assert ordering.order == tuple(range(60))
    assert ordering.scores == (None,) * 60
    one = drive(parse("adaptive(then=0)").plan(QUERY, candidates(40)), Failing(range(40), {0}))
    assert sorted(one.order) == list(range(40))


def test_what_was_not_named_is_not_compared() -> None:
    def judge(item: Ask[Any]) -> Answer[Any]:
        assert isinstance(item, Order)
        last = len(item.docs) - 1
        return Answer(status=Status.PARTIAL, value=Permutation((last, *range(last)), 1))

    ordering = drive(parse("adaptive").plan(QUERY, candidates(10)), judge)
    assert ordering.order == (9, *range(9))


def test_it_stops_when_the_best_are_sure() -> None:
    always = Perfect(range(100))
    drive(parse("adaptive(then=2+2+2+2+2+2)").plan(QUERY, candidates(100)), always)
    early = Perfect(range(100))
    drive(parse("adaptive(then=2+2+2+2+2+2, m=1, sure=0.5)").plan(QUERY, candidates(100)), early)
    assert len(early.asks) < len(always.asks) == 17


@pytest.mark.parametrize(
    "text",
    [
        "k=1",
        "cover=0",
        "then=",
        "then=2+0",
        "then=-1",
        "then=a",
        "m=0",
        "sure=0.0",
        "sure=1.5",
        "k=27, by=labels",
        "by=other",
    ],
)
def test_bad_parameters(text: str) -> None:
    with pytest.raises(SpecError):
        parse(f"adaptive({text})")
