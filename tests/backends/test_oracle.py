from __future__ import annotations

import asyncio
import math
from statistics import fmean
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrank.backends.oracle import Oracle, grade_of
from llmrank.backends.tokens import Estimate
from llmrank.errors import InputError
from llmrank.plan import Answer, Ask, Embed, Grade, Likelihood, LogProb, Order, Write
from llmrank.prompts import PromptSet
from llmrank.types import Document, Query, Status
from tests.effort import examples

QUERY = Query("q", "two words")
PROMPTS = PromptSet()


def _docs(count: int) -> tuple[Document, ...]:
    return tuple(Document(f"d{i}", f"text {i}") for i in range(count))


def _answer(oracle: Oracle, item: Ask[Any]) -> Answer[Any]:
    request = PROMPTS.render(item)
    (reply,) = asyncio.run(oracle.answer([request]))
    return PROMPTS.parse(request, reply)


def _order(oracle: Oracle, docs: tuple[Document, ...], sample: int = 0) -> tuple[int, ...]:
    value = _answer(oracle, Order(QUERY, docs, sample=sample)).value
    assert value is not None
    return tuple(value.order)


def _yes(oracle: Oracle, doc: Document) -> float:
    value = _answer(oracle, Grade(QUERY, doc)).value
    assert value is not None
    return float(value.probabilities[0])


def _logprob(oracle: Oracle, doc: Document) -> LogProb:
    value = _answer(oracle, Likelihood(QUERY, doc)).value
    assert isinstance(value, LogProb)
    return value


GRADES = st.lists(st.integers(-1, 3), min_size=1, max_size=20)


@examples(60)
@given(GRADES)
def test_a_perfect_judge_sorts_by_grade(grades: list[int]) -> None:
    oracle = Oracle({"q": {f"d{i}": grade for i, grade in enumerate(grades)}})
    docs = _docs(len(grades))
    # Negative grades, as for spam, count as 0 like what nobody judged.
    expected = sorted(range(len(grades)), key=lambda i: (-max(0, grades[i]), i))
    assert list(_order(oracle, docs)) == expected
    yes = [_yes(oracle, doc) for doc in docs]
    assert sorted(range(len(docs)), key=lambda i: (-yes[i], i)) == expected
    logprobs = [_logprob(oracle, doc) for doc in docs]
    assert sorted(range(len(docs)), key=lambda i: (-logprobs[i].mean, i)) == expected
    assert {logprob.tokens for logprob in logprobs} == {2}


def test_without_judgements_every_order_stays() -> None:
    assert _order(Oracle({}), _docs(20)) == tuple(range(20))
    assert _order(Oracle({"other": {"d5": 3}}), _docs(20)) == tuple(range(20))


def test_the_same_settings_give_the_same_replies() -> None:
    qrels = {"q": {"d3": 2, "d7": 1}}
    first, second = (
        _order(Oracle(qrels, noise=1.0, seed=5), _docs(20)),
        _order(Oracle(qrels, noise=1.0, seed=5), _docs(20)),
    )
    assert first == second
    assert _order(Oracle(qrels, noise=1.0, seed=6), _docs(20)) != first


def test_fixed_noise_errs_the_same_way_and_fresh_noise_does_not() -> None:
    always, never = Oracle({}, noise=1.0, fixed=1.0), Oracle({}, noise=1.0, fixed=0.0)
    assert len({_order(always, _docs(20), sample) for sample in range(5)}) == 1
    assert len({_order(never, _docs(20), sample) for sample in range(5)}) == 5


def test_bias_prefers_what_stands_first() -> None:
    qrels = {"q": {"d9": 1}}
    assert _order(Oracle(qrels, bias=0.5), _docs(10))[0] == 9
    assert _order(Oracle(qrels, bias=20.0), _docs(10)) == tuple(range(10))


def test_more_noise_is_a_worse_judge() -> None:
    qrels = {"q": {f"d{i}": int(i >= 10) for i in range(20)}}

    def precision(noise: float) -> float:
        oracle = Oracle(qrels, noise=noise)
        found = [_order(oracle, _docs(20), sample)[:10] for sample in range(20)]
        return fmean(sum(i >= 10 for i in top) / 10 for top in found)

    values = [precision(noise) for noise in (0.0, 0.5, 3.0)]
    assert values[0] == 1.0
    assert values == sorted(values, reverse=True)
    assert values[2] < 0.8


@pytest.mark.parametrize("noise", [0.0, 1.0, 100.0, 1e6])
def test_label_probabilities_add_up_however_far_the_utility_is_out(noise: float) -> None:
    oracle = Oracle({"q": {"d0": 1}}, noise=noise)
    for doc in _docs(30):
        request = PROMPTS.render(Grade(QUERY, doc))
        (reply,) = asyncio.run(oracle.answer([request]))
        total = math.fsum(math.exp(value) for value in reply.label_logprobs.values())
        assert total == pytest.approx(1.0)
        assert PROMPTS.parse(request, reply).status is Status.OK


def test_the_identity_tells_judges_apart() -> None:
    qrels = {"q": {"d1": 1}}
    judges = [
        Oracle(qrels),
        Oracle({"q": {"d1": 2}}),
        Oracle(qrels, noise=0.12345678),
        Oracle(qrels, noise=0.12345679),
        Oracle(qrels, fixed=0.1),
        Oracle(qrels, bias=0.1),
        Oracle(qrels, seed=1),
    ]
    assert len({judge.identity for judge in judges}) == len(judges)
    assert Oracle({"q": {"d1": 1}}).identity == Oracle(qrels).identity


@pytest.mark.parametrize(
    "bad", [{"noise": -1.0}, {"noise": math.nan}, {"fixed": 2.0}, {"bias": math.inf}]
)
def test_impossible_settings_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(InputError, match="oracle"):
        Oracle(
            {}, noise=bad.get("noise", 1.0), fixed=bad.get("fixed", 0.5), bias=bad.get("bias", 0.0)
        )


def test_tokens_are_counted_as_the_judge_counts_texts() -> None:
    class Words(Estimate):
        def count(self, text: str) -> int:
            return len(text.split())

    class Worded(Oracle):
        counter = Words()

    request = PROMPTS.render(Order(QUERY, _docs(3)))
    (reply,) = asyncio.run(Worded({}).answer([request]))
    words = sum(len(turn.content.split()) for turn in request.messages)
    assert reply.usage.prompt_tokens == words + 4 * len(request.messages)
    assert reply.usage.completion_tokens == len(reply.text.split()) == 5


def test_it_writes_something_and_cannot_embed() -> None:
    oracle = Oracle({})
    written = _answer(oracle, Write("hyde", (("query", "x"),)))
    assert written.status is Status.OK
    embedded = _answer(oracle, Embed(("a",)))
    assert (embedded.status, embedded.value) == (Status.FAILED, None)
    assert not isinstance(embedded.value, np.ndarray)
    assert "Embed" in embedded.problem


def test_a_passage_has_the_grade_of_its_document() -> None:
    judged = {"d": 2, "e#1": 1}
    assert [grade_of(judged, doc) for doc in ("d", "d#3", "e#1", "e", "f#1", "f")] == [
        2,
        2,
        1,
        0,
        0,
        0,
    ]
