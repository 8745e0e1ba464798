from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrank.backends.oracle import Oracle
from llmrank.errors import SpecError
from llmrank.plan import Answer, Ask, Grade, Need, Order, Pick, Plan, drive
from llmrank.prompts import PromptSet
from llmrank.rerank import METHODS, Cascade, Method, Ranker, parse
from llmrank.rerank.order import by_score
from llmrank.types import Candidate, Document, Ordering, Status
from tests.effort import examples, sizes
from tests.rerank.judges import (
    FAILED,
    QUERY,
    SPECS,
    Failing,
    Judge,
    Perfect,
    Ran,
    best_first,
    candidates,
    grades,
    run,
)

WINDOWS = [(20, 10), (10, 5), (4, 2), (3, 1), (5, 5), (2, 1), (7, 3)]


def method(text: str) -> Method:
    """A method on its own."""
    found = parse(text)
    assert isinstance(found, Method)
    return found


def ranked(ranker: Ranker, count: int, judge: Judge, random: Random | None = None) -> Ran:
    """What a ranker makes of so many candidates."""
    return run(ranker.plan(QUERY, candidates(count)), judge, random)


def formula(text: str, method: Method, count: int) -> float:
    """The value of a formula of a family, its sign of a bound left out."""

    def inside(which: str) -> Callable[[int], float]:
        def value(n: int) -> float:
            assert method.inner is not None
            return formula(getattr(method.inner.family, which), method.inner, n)

        return value

    names: Mapping[str, object] = {
        **method.parameters,
        "n": count,
        **{f"inner_{which}": inside(which) for which in ("calls", "rounds", "exact")},
    }
    known = {
        f.__name__: f for f in (math.ceil, math.floor, math.log2, min, max, sum, len, int, map)
    }
    return float(eval(text.removeprefix("<= "), {"__builtins__": {}, **known, **names}))


def _timely(spec: str) -> Any:  # noqa: ANN401 - what parametrize takes
    """A method to try, left out of the quick tests where it asks very much."""
    heavy = spec.startswith(("acurank", "psc", "prp_allpair", "prp_soft"))
    return pytest.param(spec, marks=[pytest.mark.slow] if heavy else [])


@pytest.mark.parametrize("spec", [_timely(spec) for spec in SPECS])
def test_calls_rounds_and_top_are_as_documented(spec: str) -> None:
    ranker = method(f"{spec}@200")
    family = ranker.family
    large = formula(family.calls, ranker, 130) > 2000
    for count in [*range(0, 131, 13), 130] if large else sizes():
        judge = Perfect(found := grades(count))
        ordering, _, rounds = ranked(ranker, count, judge)
        assert sorted(ordering.order) == list(range(count))
        assert len(ordering.scores) == count
        most, exact = ranker.most_calls(candidates(count))
        assert len(judge.asks) == most if exact else len(judge.asks) <= most
        if count < 2:
            assert len(judge.asks) <= count
            continue
        for value, text in ((len(judge.asks), family.calls), (rounds, family.rounds)):
            stated = formula(text, ranker, count)
            assert value <= stated if text.startswith("<=") else value == stated, (count, text)
        sure = int(formula(family.exact, ranker, count))
        assert list(ordering.order[:sure]) == best_first(found)[:sure]


@pytest.mark.parametrize("spec", SPECS)
def test_the_same_again_and_in_any_order_of_answers(spec: str) -> None:
    ranker = method(spec)
    for count in (2, 7, 23, 41):
        found = grades(count, distinct=False)
        first = ranked(ranker, count, Perfect(found))
        assert ranked(ranker, count, Perfect(found)) == first
        assert ranked(ranker, count, Perfect(found), Random(5)) == first


@pytest.mark.parametrize("spec", SPECS)
def test_what_it_needs_is_what_it_asks(spec: str) -> None:
    ranker = method(spec)
    judge = Perfect(grades(30))
    ranked(ranker, 30, judge)
    assert {(n.ask, n.by) for n in ranker.needs} == {
        (type(item), item.by if isinstance(item, Pick) else "text") for item in judge.asks
    }


@pytest.mark.parametrize(("window", "stride"), WINDOWS)
@pytest.mark.parametrize("passes", [1, 2])
def test_sliding_windows(window: int, stride: int, passes: int) -> None:
    ranker = method(f"sliding(window={window}, stride={stride}, passes={passes})@200")
    for count in sizes():
        judge = Perfect(found := grades(count))
        ordering, *_ = ranked(ranker, count, judge)
        assert ordering.scores == (None,) * count
        assert len(judge.asks) == (formula(ranker.family.calls, ranker, count) if count > 1 else 0)
        # One window sees everything; else every step carries the best `window - stride` on.
        sure = count if count <= window else passes * (window - stride)
        assert list(ordering.order[:sure]) == best_first(found)[:sure]


def _with_oracle(ranker: Ranker, found: Sequence[Candidate], oracle: Oracle) -> Ordering:
    prompts = PromptSet()

    def judge(item: Ask[Any]) -> Answer[Any]:
        request = prompts.render(item)
        (reply,) = asyncio.run(oracle.answer([request]))
        return prompts.parse(request, reply)

    return drive(ranker.plan(QUERY, found), judge)


@pytest.mark.parametrize(
    "spec", [*SPECS, "sliding(by=labels)", "adaptive(by=labels)", "setwise(by=labels)"]
)
def test_the_perfect_oracle_ranks_well_through_the_prompts(spec: str) -> None:
    found = grades(12, distinct=False)
    oracle = Oracle({"q": {f"d{i}": grade for i, grade in enumerate(found)}})
    ranker = method(spec)
    ordering = _with_oracle(ranker, candidates(12), oracle)
    assert sorted(ordering.order) == list(range(12))
    if formula(ranker.family.exact, ranker, 12) >= 10:
        got = [found[i] for i in ordering.order[:10]]
        assert got == sorted(found, reverse=True)[:10]
    else:
        assert found[ordering.order[0]] == max(found)


@pytest.mark.parametrize("spec", SPECS)
def test_no_candidates_and_one_candidate(spec: str) -> None:
    for count in (0, 1):
        ordering, *_ = ranked(method(spec), count, Perfect(range(count)))
        assert ordering.order == tuple(range(count))
        assert len(ordering.scores) == count


@pytest.mark.parametrize("spec", SPECS)
def test_equal_texts_and_equal_ids_stay_apart(spec: str) -> None:
    twins = [Candidate(Document(f"d{i % 3}", "the same"), 1.0) for i in range(6)]
    ordering = drive(method(spec).plan(QUERY, twins), Perfect([0, 1, 20]))
    assert sorted(ordering.order) == list(range(6))
    if METHODS[method(spec).name].exact != "0":
        assert {twins[i].document.id for i in ordering.order[:2]} == {"d2"}


@pytest.mark.parametrize("spec", SPECS)
def test_what_lies_beyond_the_depth_follows_unscored(spec: str) -> None:
    ordering, *_ = ranked(method(f"{spec}@5"), 30, Perfect(range(30)))
    assert sorted(ordering.order[:5]) == list(range(5))
    assert ordering.order[5:] == tuple(range(5, 30))
    assert ordering.scores[5:] == (None,) * 25


def test_a_failed_window_keeps_its_order() -> None:
    # Windows over 8: [4..8), [2..6), [0..4); the middle one fails.
    judge = Failing(range(8), {1})
    ordering, *_ = ranked(parse("sliding(window=4, stride=2)"), 8, judge)
    assert len(judge.asks) == 3
    assert ordering.order == (3, 2, 1, 0, 7, 6, 5, 4)


@pytest.mark.parametrize("name", ["likelihood", "yesno"])
def test_a_failed_document_keeps_its_place(name: str) -> None:
    ordering, *_ = ranked(parse(name), 5, Failing(range(5), {1, 3}))
    assert ordering.order == (4, 1, 2, 3, 0)
    assert [score is None for score in ordering.scores] == [False, True, False, True, False]


@examples(100)
@given(st.sampled_from(SPECS), st.integers(0, 45), st.sets(st.integers(0, 60)), st.booleans())
def test_failures_lose_nobody(spec: str, count: int, failing: set[int], malformed: bool) -> None:
    judge = Failing(grades(count), failing)
    status = Status.MALFORMED if malformed else Status.FAILED

    def answer(item: Ask[Any]) -> Answer[Any]:
        given = judge(item)
        return Answer(status=status, problem="no") if given is FAILED else given

    ordering, *_ = ranked(parse(spec), count, answer)
    assert sorted(ordering.order) == list(range(count))
    assert len(ordering.scores) == count


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_judge_of_no_sense_is_survived(spec: str, seed: int) -> None:
    random = Random(seed)

    class Senseless(Perfect):
        def value(self, item: Ask[Any]) -> object:
            self.grades = {name: random.randrange(9) for name in self.grades}
            return super().value(item)

    ranker = method(spec)
    judge = Senseless([0] * 40)
    ordering, _, rounds = ranked(ranker, 40, judge)
    assert sorted(ordering.order) == list(range(40))
    assert len(judge.asks) <= formula(ranker.family.calls, ranker, 40)
    assert rounds <= formula(ranker.family.rounds, ranker, 40)


@pytest.mark.parametrize("spec", SPECS)
def test_when_everything_fails_the_first_stage_order_stays(spec: str) -> None:
    ordering, *_ = ranked(parse(spec), 50, lambda _: FAILED)
    assert ordering.order == tuple(range(50))


def test_a_malformed_reply_is_asked_for_once_more() -> None:
    seen: list[str] = []

    def judge(item: Ask[Any]) -> Answer[Any]:
        seen.append(item.problem)
        return Answer(status=Status.MALFORMED, problem="no ranking")

    ranked(parse("sliding"), 3, judge)
    assert seen == ["", "no ranking"]
    seen.clear()
    ranked(parse("sliding(by=labels)"), 3, judge)
    assert seen == [""]


def test_the_most_calls_of_methods_around_others() -> None:
    documents = [
        Candidate(Document(f"d{i}", " ".join(["w"] * words)), 1.0)
        for i, words in enumerate([20, 4, 12, 4])
    ]
    # Passages of 4 words, each sharing 2 with the one before: 9, 1, 5 and 1.
    for text, most in [
        ("passages(yesno, words=4, overlap=2)", (16, True)),
        ("passages(yesno, words=4, overlap=2)@2", (10, True)),
        ("psc(passages(yesno, words=4, overlap=2), samples=3)", (48, False)),
        ("passages(psc(yesno, samples=3), words=4, overlap=2)", (48, False)),
        ("psc(sliding(window=3, stride=1), samples=3)", (6, False)),
        ("adaptive(k=2, then=2+1)", (5, True)),
        ("adaptive(k=2, then=0)", (2, True)),
        ("yesno >> sliding@2", (5, True)),
        ("yesno >> setwise(c=3, k=1)@3", (6, False)),
        ("yesno@1", (1, True)),
        ("sliding@1", (0, True)),
    ]:
        assert parse(text).most_calls(documents) == most, text


REFUSED = [
    ("jointrank(design=latin, k=5)", 25, "latin square of 26 items"),
    ("jointrank(design=triangular, k=4)", 10, "triangular design of 11 items"),
    ("full(by=labels)", 26, "at most 26"),
    ("psc(full(by=labels))", 26, "at most 26"),
    ("passages(full(by=labels), words=1, overlap=0)", 26, "at most 26"),
    ("yesno >> full(by=labels)", 26, "at most 26"),
]


@pytest.mark.parametrize(("text", "most", "told"), REFUSED)
def test_what_cannot_rank_so_many_is_refused_before_it_asks(
    text: str, most: int, told: str
) -> None:
    ranker = parse(text)
    assert ranker.needs
    ranker.attempt(QUERY, candidates(most))
    with pytest.raises(SpecError, match=f"query 'q': .*{told}"):
        ranker.attempt(QUERY, candidates(most + 1))
    with pytest.raises(SpecError, match=told):
        ranked(ranker, most + 1, Perfect(range(most + 1)))
    parse(text.replace(" >>", "@9 >>") + f"@{most}").attempt(QUERY, candidates(most + 1))


def test_what_is_needed_says_labels_numbers_and_words() -> None:
    assert parse("yesno").needs == (Need(Grade, labels=("yes", "no")),)
    assert parse("grade(labels=1-3)").needs == (Need(Grade, labels=("3", "2", "1")),)
    (picking,) = parse("tourrank").needs
    assert picking == Need(Pick, n=picking.n)
    assert picking.n > 1
    assert parse("passages(sliding, words=70)").needs == (Need(Order, words=70),)
    assert parse("psc(passages(sliding, words=70))").needs == (Need(Order, words=70),)
    assert parse("passages(sliding, words=70) >> sliding").needs == (Need(Order, words=70),)
    assert parse("setwise >> tourrank").needs == (picking,)


@pytest.mark.parametrize("spec", SPECS)
def test_what_is_settled_ends_at_the_depth(spec: str) -> None:
    inside, *_ = ranked(method(f"{spec}@5"), 5, Perfect(range(5)))
    beyond, *_ = ranked(method(f"{spec}@5"), 30, Perfect(range(30)))
    assert beyond.ranked == inside.settled <= 5


def test_a_cascade_settles_what_any_stage_does() -> None:
    for text, settled in [
        ("yesno@20 >> sliding@6", 20),
        ("setwise(k=3)@20 >> sliding@6", 6),
        ("setwise(k=3)@20 >> setwise(k=2)@10", 3),
    ]:
        assert ranked(parse(text), 30, Perfect(range(30)))[0].ranked == settled


def test_a_cascade_reranks_what_came_first() -> None:
    ranker = parse("yesno@20 >> sliding(window=4, stride=2)@6 >> prp(sliding=2)@3")
    assert isinstance(ranker, Cascade)
    assert (ranker.depth, len(ranker.stages)) == (20, 3)
    assert parse(str(ranker)) == ranker
    judge = Perfect(found := grades(30))
    ordering, _, rounds = ranked(ranker, 30, judge)
    assert list(ordering.order[:20]) == best_first(found[:20])
    assert ordering.order[20:] == tuple(range(20, 30))
    # One round of grades, two windows, and three pairs of which the last waits for the first two.
    assert rounds == 1 + 2 + 3
    stages = [item.stage for item in judge.asks]
    assert {stage: stages.count(stage) for stage in stages} == {
        str(ranker.stages[0]): 20,
        str(ranker.stages[1]): 2,
        str(ranker.stages[2]): 6,
    }
    assert ranker.needs[1:] == (Need(Order), Need(Pick))
    assert all(ordering.scores[i] is not None for i in range(20))


def test_a_stage_that_looks_deeper_takes_what_follows() -> None:
    ordering, *_ = ranked(parse("sliding@2 >> yesno@4"), 4, Perfect(range(4)))
    assert ordering.order == (3, 2, 1, 0)


def test_the_prior_fuses_standardised_scores() -> None:
    # z of the model scores (0, 1, 2) and of the first-stage scores (3, 2, 1) are opposite.
    for prior, order in ((0.0, (2, 1, 0)), (0.5, (2, 1, 0)), (1.0, (0, 1, 2)), (2.0, (0, 1, 2))):
        ordering, *_ = ranked(Method("likelihood", {"prior": prior}), 3, Perfect(range(3)))
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


@examples(200)
@given(METHOD, st.integers(1, 10_000))
def test_names_are_read_back(made: tuple[str, dict[str, object]], depth: int) -> None:
    method = Method(*made, depth=depth)
    assert parse(str(method)) == method
    assert str(parse(str(method))) == str(method)
    assert parse(f"  {str(method).replace(', ', ' ,').replace('=', ' = ')} ") == method


def test_defaults_are_part_of_the_name() -> None:
    assert str(Method("sliding")) == "sliding(window=20, stride=10, passes=1, by=text)@100"
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
        "yesno@10 >> ",
        ">> yesno",
        "yesno >> nothing",
        "yesno(sliding)",
        "yesno(likelihood())",
        "sliding(by=letters)",
        "sliding(window=30, by=labels)",
        "sliding(passes=0)",
    ],
)
def test_bad_specs_are_refused_when_read(text: str) -> None:
    with pytest.raises(SpecError):
        parse(text)


@examples(300)
@given(st.text(alphabet="slidngyeo(window=20, tr=1)@.-_x", max_size=40))
def test_any_text_is_a_method_or_a_spec_error(text: str) -> None:
    try:
        method = parse(text)
    except SpecError:
        return
    assert parse(str(method)) == method


SCORES = st.lists(st.none() | st.floats(allow_nan=False) | st.integers(-2, 2).map(float))


@examples(300)
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
    plan: Plan[Ordering] = METHODS["sliding"].plan(QUERY, candidates(3), window=2, stride=3)
    with pytest.raises(SpecError, match="stride"):
        drive(plan, lambda _: FAILED)
