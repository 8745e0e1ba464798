from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrank.backends.oracle import Oracle
from llmrank.errors import SpecError
from llmrank.plan import (
    Answer,
    Ask,
    Grade,
    Grades,
    Likelihood,
    LogProb,
    Order,
    Permutation,
    Plan,
    drive,
)
from llmrank.prompts import PromptSet
from llmrank.rerank import METHODS, Method, parse
from llmrank.rerank.order import by_score
from llmrank.types import Candidate, Document, Ordering, Query, Status

QUERY = Query("q", "small query")
WINDOWS = [(20, 10), (10, 5), (4, 2), (3, 1), (5, 5), (2, 1), (7, 3)]
FAILED: Answer[Any] = Answer(status=Status.FAILED, problem="connection lost")


def _candidates(count: int) -> list[Candidate]:
    return [Candidate(Document(f"d{i}", "t"), float(count - i)) for i in range(count)]


def _grades(count: int, *, distinct: bool) -> list[int]:
    random = Random(count)
    grades = list(range(count)) if distinct else [random.randrange(4) for _ in range(count)]
    random.shuffle(grades)
    return grades


class Perfect:
    """Answers asks from grades by document id, and counts them."""

    def __init__(self, grades: Sequence[int]) -> None:
        self.grades = {f"d{i}": grade for i, grade in enumerate(grades)}
        self.asks: list[Ask[Any]] = []

    def __call__(self, item: Ask[Any]) -> Answer[Any]:
        self.asks.append(item)
        if isinstance(item, Order):
            values = [self.grades[doc.id] for doc in item.docs]
            order = sorted(range(len(values)), key=lambda i: (-values[i], i))
            return Answer(status=Status.OK, value=Permutation(tuple(order)))
        if isinstance(item, Grade):
            mass = 1 / (1 + math.exp(-self.grades[item.doc.id]))
            return Answer(status=Status.OK, value=Grades((mass, 1 - mass), 1.0))
        assert isinstance(item, Likelihood)
        return Answer(status=Status.OK, value=LogProb(self.grades[item.doc.id] - 100.0, 3))


def _calls(method: Method, count: int) -> int:
    names = {"n": count, "ceil": math.ceil, "max": max, **method.parameters}
    return int(eval(method.family.calls, {"__builtins__": {}}, names))


@pytest.mark.parametrize(("window", "stride"), WINDOWS)
def test_sliding_windows(window: int, stride: int) -> None:
    method = Method("sliding", {"window": window, "stride": stride}, depth=200)
    for count in range(131):
        judge = Perfect(grades := _grades(count, distinct=True))
        ordering = drive(method.plan(QUERY, _candidates(count)), judge)
        assert sorted(ordering.order) == list(range(count))
        assert ordering.scores == (None,) * count
        assert len(judge.asks) == (_calls(method, count) if count > 1 else 0)
        best = sorted(range(count), key=lambda i: -grades[i])
        # One window sees everything; else every step carries the best `window - stride` on.
        sure = count if count <= window else window - stride
        assert list(ordering.order[:sure]) == best[:sure]


@pytest.mark.parametrize("name", ["likelihood(mean=true)", "likelihood(mean=false)", "yesno"])
def test_pointwise_methods_sort_exactly(name: str) -> None:
    method = parse(f"{name}@200")
    for count in range(131):
        judge = Perfect(grades := _grades(count, distinct=False))
        ordering = drive(method.plan(QUERY, _candidates(count)), judge)
        assert list(ordering.order) == sorted(range(count), key=lambda i: (-grades[i], i))
        assert len(judge.asks) == _calls(method, count)
        assert all(score is not None for score in ordering.scores)


def _with_oracle(method: Method, candidates: Sequence[Candidate], oracle: Oracle) -> Ordering:
    prompts = PromptSet()

    def judge(item: Ask[Any]) -> Answer[Any]:
        request = prompts.render(item)
        (reply,) = asyncio.run(oracle.answer([request]))
        return prompts.parse(request, reply)

    return drive(method.plan(QUERY, candidates), judge)


@pytest.mark.parametrize("spec", ["likelihood", "yesno", "sliding(window=20, stride=10)"])
def test_the_perfect_oracle_ranks_perfectly_through_the_prompts(spec: str) -> None:
    grades = _grades(20, distinct=False)
    oracle = Oracle({"q": {f"d{i}": grade for i, grade in enumerate(grades)}})
    ordering = _with_oracle(parse(spec), _candidates(20), oracle)
    assert list(ordering.order) == sorted(range(20), key=lambda i: (-grades[i], i))


@pytest.mark.parametrize("name", METHODS)
def test_no_candidates_and_one_candidate(name: str) -> None:
    for count in (0, 1):
        ordering = drive(parse(name).plan(QUERY, _candidates(count)), Perfect(range(count)))
        assert ordering.order == tuple(range(count))
        assert len(ordering.scores) == count


@pytest.mark.parametrize("name", METHODS)
def test_equal_texts_and_equal_ids_stay_apart(name: str) -> None:
    twins = [Candidate(Document(f"d{i % 3}", "the same"), 1.0) for i in range(6)]
    ordering = drive(parse(name).plan(QUERY, twins), Perfect([0, 1, 2]))
    assert [twins[i].document.id for i in ordering.order] == ["d2", "d2", "d1", "d1", "d0", "d0"]
    assert ordering.order == (2, 5, 1, 4, 0, 3)


@pytest.mark.parametrize("name", METHODS)
def test_what_lies_beyond_the_depth_follows_unscored(name: str) -> None:
    judge = Perfect(range(30))
    ordering = drive(parse(f"{name}@5").plan(QUERY, _candidates(30)), judge)
    assert ordering.order == (4, 3, 2, 1, 0, *range(5, 30))
    assert ordering.scores[5:] == (None,) * 25


class Failing(Perfect):
    """Perfect, but the calls with these numbers fail."""

    def __init__(self, grades: Sequence[int], failing: set[int]) -> None:
        super().__init__(grades)
        self.failing = failing

    def __call__(self, item: Ask[Any]) -> Answer[Any]:
        answer = super().__call__(item)
        return FAILED if len(self.asks) - 1 in self.failing else answer


def test_a_failed_window_keeps_its_order() -> None:
    # Windows over 8: [4..8), [2..6), [0..4); the middle one fails.
    judge = Failing(range(8), {1})
    ordering = drive(parse("sliding(window=4, stride=2)").plan(QUERY, _candidates(8)), judge)
    assert len(judge.asks) == 3
    assert ordering.order == (3, 2, 1, 0, 7, 6, 5, 4)


@pytest.mark.parametrize("name", ["likelihood", "yesno"])
def test_a_failed_document_keeps_its_place(name: str) -> None:
    ordering = drive(parse(name).plan(QUERY, _candidates(5)), Failing(range(5), {1, 3}))
    assert ordering.order == (4, 1, 2, 3, 0)
    assert [score is None for score in ordering.scores] == [False, True, False, True, False]


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(list(METHODS)), st.integers(0, 45), st.sets(st.integers(0, 60)), st.booleans()
)
def test_failures_lose_nobody(name: str, count: int, failing: set[int], malformed: bool) -> None:
    judge = Failing(_grades(count, distinct=True), failing)
    status = Status.MALFORMED if malformed else Status.FAILED

    def answer(item: Ask[Any]) -> Answer[Any]:
        given = judge(item)
        return Answer(status=status, problem="no") if given is FAILED else given

    ordering = drive(parse(name).plan(QUERY, _candidates(count)), answer)
    assert sorted(ordering.order) == list(range(count))
    assert len(ordering.scores) == count


def test_when_everything_fails_the_first_stage_order_stays() -> None:
    for name in METHODS:
        ordering = drive(parse(name).plan(QUERY, _candidates(50)), lambda _: FAILED)
        assert ordering.order == tuple(range(50))


def test_a_malformed_reply_is_asked_for_once_more() -> None:
    seen: list[str] = []

    def judge(item: Ask[Any]) -> Answer[Any]:
        seen.append(item.problem)
        return Answer(status=Status.MALFORMED, problem="no ranking")

    drive(parse("sliding").plan(QUERY, _candidates(3)), judge)
    assert seen == ["", "no ranking"]


def test_the_prior_fuses_standardised_scores() -> None:
    # z of the model scores (0, 1, 2) and of the first-stage scores (3, 2, 1) are opposite.
    for prior, order in ((0.0, (2, 1, 0)), (0.5, (2, 1, 0)), (1.0, (0, 1, 2)), (2.0, (0, 1, 2))):
        method = Method("likelihood", {"prior": prior})
        ordering = drive(method.plan(QUERY, _candidates(3)), Perfect(range(3)))
        assert ordering.order == order
    same = [Candidate(Document(f"d{i}", "t"), 1.0) for i in range(3)]
    fused = drive(Method("likelihood", {"prior": 1.0}).plan(QUERY, same), Perfect(range(3)))
    assert fused.order == (2, 1, 0)


METHOD: st.SearchStrategy[tuple[str, dict[str, object]]] = st.one_of(
    st.builds(
        lambda mean, prior: ("likelihood", {"mean": mean, "prior": prior}),
        st.booleans(),
        st.floats(0, 1e300, allow_nan=False),
    ),
    st.just(("yesno", {})),
    st.integers(2, 500).flatmap(
        lambda window: st.integers(1, window).map(
            lambda stride: ("sliding", {"window": window, "stride": stride})
        )
    ),
)


@settings(max_examples=200, deadline=None)
@given(METHOD, st.integers(1, 10_000))
def test_names_are_read_back(made: tuple[str, dict[str, object]], depth: int) -> None:
    method = Method(*made, depth=depth)
    assert parse(str(method)) == method
    assert str(parse(str(method))) == str(method)
    assert parse(f"  {str(method).replace(', ', ' ,').replace('=', ' = ')} ") == method


def test_defaults_are_part_of_the_name() -> None:
    assert str(Method("sliding")) == "sliding(window=20, stride=10)@100"
    assert Method("sliding") == parse("sliding") == parse("sliding()@100")
    assert Method("sliding", {"window": 20}) == Method("sliding")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sliding window",
        "sliding(window=20",
        "nothing@10",
        "yesno(depth=3)",
        "sliding(20)",
        "sliding(window=)",
        "sliding(window=ten)",
        "sliding(window=2.5)",
        "sliding(window=4, window=5)",
        "sliding(window=1, stride=1)",
        "sliding(window=5, stride=10)",
        "sliding(stride=0)",
        "sliding(stride=-1)",
        "sliding@0",
        "sliding@-1",
        "sliding@1.5",
        "likelihood(mean=1)",
        "likelihood(prior=nan)",
        "likelihood(prior=inf)",
        "likelihood(prior=-1)",
        "yesno@" + "9" * 5000,
        "sliding(window=" + "9" * 5000 + ")",
        "yesno@10 >> sliding",
    ],
)
def test_bad_specs_are_refused_when_read(text: str) -> None:
    with pytest.raises(SpecError):
        parse(text)


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="slidngyeo(window=20, tr=1)@.-_x", max_size=40))
def test_any_text_is_a_method_or_a_spec_error(text: str) -> None:
    try:
        method = parse(text)
    except SpecError:
        return
    assert parse(str(method)) == method


SCORES = st.lists(st.none() | st.floats(allow_nan=False) | st.integers(-2, 2).map(float))


@settings(max_examples=300, deadline=None)
@given(SCORES)
def test_by_score(scores: list[float | None]) -> None:
    order = by_score(scores)
    assert sorted(order) == list(range(len(scores)))
    assert all(order[i] == i for i, score in enumerate(scores) if score is None)
    scored = [i for i in order if scores[i] is not None]
    assert scored == sorted(scored, key=lambda i: (-(scores[i] or 0.0), i))


@given(SCORES.filter(lambda s: None not in s), st.integers(-3, 3))
def test_by_score_minds_only_the_order_of_the_scores(scores: list[float], shift: int) -> None:
    ranks = sorted(set(scores))
    assert by_score([float(ranks.index(s) + shift) for s in scores]) == by_score(scores)


def test_a_plan_checks_its_parameters_when_used_directly() -> None:
    plan: Plan[Ordering] = METHODS["sliding"].plan(QUERY, _candidates(3), window=2, stride=3)
    with pytest.raises(SpecError, match="stride"):
        drive(plan, lambda _: FAILED)
