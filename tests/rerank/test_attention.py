"""Reranking by attention: one call over all, or blocks side by side."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrank.errors import SpecError
from llmrank.plan import Attend, Drive, drive
from llmrank.rerank.attention import attention
from tests.effort import sizes
from tests.rerank.judges import QUERY, Failing, Perfect, best_first, candidates, grades


@pytest.mark.parametrize("window", [0, 2, 3, 10, 20, 200])
def test_documents_come_in_the_order_of_their_masses(window: int) -> None:
    for count in sizes():
        judge = Perfect(found := grades(count))
        running = Drive(attention(QUERY, candidates(count), window=window))
        for ticket in running.start():
            running.answer(ticket, judge(ticket.ask))
        assert list(running.result.order) == best_first(found)
        if count < 2:
            assert not judge.asks
            continue
        assert running.rounds == 1
        assert len(judge.asks) == (math.ceil(count / window) if window else 1)
        assert running.result.scores == tuple(map(float, found))


@given(st.integers(2, 60), st.integers(2, 30))
def test_blocks_are_as_equal_as_can_be_and_show_every_document_once(
    count: int, window: int
) -> None:
    judge = Perfect(range(count))
    drive(attention(QUERY, candidates(count), window=window), judge)
    shown = [item.docs for item in judge.asks if isinstance(item, Attend)]
    assert [doc.id for docs in shown for doc in docs] == [f"d{i}" for i in range(count)]
    sizes = [len(docs) for docs in shown]
    assert max(sizes) <= window
    assert max(sizes) - min(sizes) <= 1


def test_the_candidates_of_a_failed_call_keep_their_places() -> None:
    ordering = drive(attention(QUERY, candidates(9), window=3), Failing(range(9), {1}))
    assert ordering.order == (8, 7, 6, 3, 4, 5, 2, 1, 0)
    assert ordering.scores[3:6] == (None,) * 3
    ordering = drive(attention(QUERY, candidates(4)), Failing(range(4), {0}))
    assert (ordering.order, ordering.scores) == ((0, 1, 2, 3), (None,) * 4)


def test_ties_keep_the_order_of_the_first_stage() -> None:
    ordering = drive(attention(QUERY, candidates(5), window=2), Perfect([1, 2, 1, 2, 1]))
    assert ordering.order == (1, 3, 0, 2, 4)


@pytest.mark.parametrize("window", [-1, 1])
def test_a_window_that_compares_nothing_is_refused_at_once(window: int) -> None:
    with pytest.raises(SpecError, match="window"):
        next(attention(QUERY, (), window=window))
