from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrank.errors import SpecError
from llmrank.plan import Answer, Ask, Likelihood, LogProb, drive
from llmrank.prompts import PromptSet
from llmrank.synth import Shot
from llmrank.synth.shots import TASK, choose_shots
from llmrank.types import Document, Query, Status
from tests.synth.worlds import failed

POOL = [Shot(f"document {i}", f"query {i}") for i in range(12)]


def worth(examples: tuple[tuple[str, str], ...]) -> float:
    """How likely other queries are behind examples: a number of their own for each."""
    return -1.0 / (1 + sum(int(query.split()[1]) ** 2 for _, query in examples))


def likely(item: Ask[Any]) -> Answer[Any]:
    assert isinstance(item, Likelihood)
    return Answer(status=Status.OK, value=LogProb(3 * worth(item.examples), 3))


@given(st.integers(1, 4), st.integers(0, 9))
def test_the_likeliest_set_that_was_tried_is_chosen(n: int, seed: int) -> None:
    tried: list[tuple[tuple[str, str], ...]] = []
    judged: set[str] = set()

    def judge(item: Ask[Any]) -> Answer[Any]:
        assert isinstance(item, Likelihood)
        tried.append(item.examples)
        judged.add(item.query.text)
        return likely(item)

    chosen = drive(choose_shots(POOL, n, draws=8, held_out=4, seed=seed), judge)
    assert chosen.value == pytest.approx(max(map(worth, tried)))
    assert chosen.worst == pytest.approx(min(map(worth, tried)))
    assert worth(chosen.shots) == pytest.approx(chosen.value)
    assert len(set(chosen.shots)) == n
    assert len(judged) == 4
    # What is shown is never what is judged by.
    assert judged.isdisjoint(query for examples in tried for _, query in examples)


def test_a_set_that_lost_an_answer_is_not_chosen() -> None:
    best = drive(choose_shots(POOL, 2, draws=8), likely)

    def judge(item: Ask[Any]) -> Answer[Any]:
        assert isinstance(item, Likelihood)
        return failed() if item.examples == best.shots else likely(item)

    other = drive(choose_shots(POOL, 2, draws=8), judge)
    assert other.shots != best.shots
    with pytest.raises(SpecError, match="no likelihood"):
        drive(choose_shots(POOL, 2), lambda _: failed())


@pytest.mark.parametrize(("size", "n"), [(1, 1), (3, 2), (0, 1), (8, 0)])
def test_a_pool_that_is_too_small_is_refused(size: int, n: int) -> None:
    if (size, n) == (3, 2):
        assert len(drive(choose_shots(POOL[:3], 2), likely).shots) == 2
        return
    with pytest.raises(SpecError, match="cannot be chosen"):
        drive(choose_shots(POOL[:size], n), likely)


def test_the_prompt_shows_the_examples_as_a_writer_does() -> None:
    item = Likelihood(Query("", "why"), Document("", "a text"), TASK, (("shown", "query"),))
    request = PromptSet().render(item)
    assert request.target == " why"
    assert "Document: shown\nSearch: query\n\nDocument: a text\nSearch:" in request.prompt
