from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrank import spec
from llmrank.backends.oracle import Oracle
from llmrank.errors import SpecError
from llmrank.plan import (
    Answer,
    Ask,
    Grade,
    Likelihood,
    Need,
    Order,
    Permutation,
    drive,
)
from llmrank.prompts import PromptSet
from llmrank.rerank import Ranker, parse
from llmrank.synth.base import QUERY, SOURCE, WRITTEN, Example, Passage, Stage
from llmrank.synth.labels import Denoise, Relabel, Teacher
from llmrank.types import Status
from tests.synth.passages import (
    FAILED,
    Index,
    Judge,
    document,
    example,
    labels,
    mined,
    run,
    scores,
    with_mined,
)

NAMES = [f"d{i}" for i in range(9)]
# Thousandths: what differs by less may come out as equal.
LIKELY = st.dictionaries(
    st.sampled_from(["s", "t", *NAMES]), st.integers(0, 1000).map(lambda n: n / 1000)
)
MINED = st.dictionaries(st.sampled_from(NAMES), st.sampled_from([0, 0, None, 1, 2]))


@cache
def yesno(depth: int = 100) -> Ranker:
    return parse(f"yesno@{depth}")


def beside(found: dict[str, int | None], *sources: str) -> Example:
    own = [Passage(document(name), SOURCE, 1) for name in sources]
    return example(*sources, passages=[*own, *(mined(n, label) for n, label in found.items())])


def order(item: Ask[Any], best: str, named: int | None = None) -> Answer[Any]:
    """The documents shown in the order of the letters, what is not among them behind."""
    assert isinstance(item, Order)
    names = [doc.id for doc in item.docs]
    places = sorted(range(len(names)), key=lambda i: (best + names[i]).index(names[i]))
    return Answer(status=Status.OK, value=Permutation(tuple(places), named))


# denoise


def test_denoise() -> None:
    likely = {"a": 0.05, "b": 0.1, "c": 0.5, "d": 0.9, "e": 0.97}
    before = with_mined(*"abcdef")
    judge = Judge(likely)
    one = run(Denoise(parse("yesno@20")), before, judge)
    assert labels(one) == {"s": 1, "a": 0, "b": 0, "c": None, "d": 1, "e": 1, "f": None}
    assert scores(one, "denoise") == likely
    assert judge.judged == list("abcdef")
    assert one.verdicts[0][1:] == (True, 2, 1, "judged: 5, positive: 2, open: 2")


def test_denoise_looks_as_deep_as_its_method() -> None:
    one = run(Denoise(parse("yesno@2")), with_mined("a", "b", "c"), Judge({"a": 0.0}))
    assert labels(one) == {"s": 1, "a": 0, "b": None, "c": 0}


def test_a_second_judge_for_what_the_first_left_open() -> None:
    before = beside({"a": 0, "b": None, "c": 1, "d": None}, "s")
    judge = Judge({"b": 0.99, "d": 0.0})
    one = run(Denoise(yesno(), unsure=True), before, judge)
    assert judge.judged == ["b", "d"]
    assert labels(one) == {"s": 1, "a": 0, "b": 1, "c": 1, "d": 0}


@given(MINED, LIKELY, st.floats(0, 0.49), st.floats(0.5, 1), st.booleans())
def test_denoise_whatever_is_answered(
    found: dict[str, int | None],
    likely: dict[str, float],
    negative: float,
    positive: float,
    unsure: bool,
) -> None:
    stage = Denoise(yesno(), negative=negative, positive=positive, unsure=unsure)
    before = beside(found, "s")
    one = run(stage, before, Judge(likely))
    for name, label in found.items():
        expected = label
        if not label and (label is None or not unsure):
            value = likely.get(name)
            unknown = value is None or negative < value < positive
            expected = None if unknown else int((value or 0.0) >= positive)
        assert labels(one)[name] == expected
    assert labels(one)["s"] == 1
    assert one.kept is (0 in labels(one).values())
    assert run(stage, before, Judge(likely)) == one


def test_a_lost_model_drops_the_example() -> None:
    one = run(Denoise(yesno()), with_mined("a", "b"))
    assert (one.kept, one.verdicts[0].value) == (False, 0)
    assert labels(one) == {"s": 1, "a": None, "b": None}


@pytest.mark.parametrize(
    ("method", "likely", "score", "label"),
    [
        ("grade(labels=4)", 0.8, 2.6, None),  # the others share 0.2: 0.8 * 3 + 0.2 = 2.6 of 0 to 3
        ("grade(labels=4)", 0.95, 2.9, 1),
        ("grade(labels=1-5)", 0.0, 2.5, None),  # 1.5 of 4 above the lowest
        ("grade(labels=yes/no)", 0.04, 0.04, 0),
        ("grade(labels=4, score=peak)", 0.95, 0.95, 1),
    ],
)
def test_denoise_by_a_scale(method: str, likely: float, score: float, label: int | None) -> None:
    one = run(Denoise(parse(method)), with_mined("a"), Judge({"a": likely}))
    assert labels(one)["a"] == label
    assert scores(one, "denoise")["a"] == pytest.approx(score)


@pytest.mark.parametrize("method", ["likelihood", "sliding", "setwise", "yesno@20 >> grade@5"])
def test_denoise_needs_a_scale(method: str) -> None:
    with pytest.raises(SpecError, match="scale"):
        Denoise(parse(method))


# relabel


def test_the_best_passage_takes_the_place_of_the_source() -> None:
    likely = {"a": 0.1, "s": 0.6, "b": 0.9, "c": 0.7, "d": 0.3, "e": 0.2}
    one = run(Relabel(yesno()), with_mined(*"abcde"), Judge(likely))
    # The order is b c s d e a.
    assert labels(one) == {"s": None, "b": 1, "c": None, "d": 0, "e": 0, "a": 0}
    assert one.verdicts[0][1:] == (True, 3, 1, "source at rank 3 of 6, replaced by b")
    assert scores(one, "relabel")["b"] == 2.0


def test_a_source_that_nothing_beats_stays() -> None:
    judge = Judge({"s": 0.9, "a": 0.9, "b": 0.5, "c": 0.1})
    one = run(Relabel(yesno()), with_mined("a", "b", "c"), judge)
    assert labels(one) == {"s": 1, "a": None, "b": 0, "c": 0}
    assert sum(isinstance(item, Likelihood) for item in judge.asks) == 4


def test_both_rankings_count() -> None:
    """By relevance a b s c, by likelihood s b a c: the sums of reciprocal ranks are s, a, b, c."""
    relevance, likelihood = {"a": 4, "b": 3, "s": 2, "c": 1}, {"s": 4, "b": 3, "a": 2, "c": 1}

    def judge(item: Ask[Any]) -> Answer[Any]:
        assert isinstance(item, Grade | Likelihood)
        known = relevance if isinstance(item, Grade) else likelihood
        return Judge({name: value / 5 for name, value in known.items()})(item)

    one = run(Relabel(yesno()), with_mined("a", "b", "c"), judge)
    expected = {"s": 1 / 3 + 1, "a": 1 + 1 / 3, "b": 1 / 2 + 1 / 2, "c": 1 / 4 + 1 / 4}
    assert scores(one, "relabel") == pytest.approx(expected)
    assert labels(one) == {"s": 1, "a": None, "b": 0, "c": 0}
    alone = run(Relabel(yesno(), likelihood=False), with_mined("a", "b", "c"), judge)
    assert labels(alone) == {"s": None, "a": 1, "b": None, "c": 0}


def test_what_the_margin_threw_out_may_become_a_negative() -> None:
    one = run(
        Relabel(yesno(), low=1.0),
        beside({"a": None, "b": 0}, "s"),
        Judge({"s": 0.9, "a": 0.3, "b": 0.2}),
    )
    assert labels(one) == {"s": 1, "a": 0, "b": 0}


@given(MINED, LIKELY, st.floats(0.01, 1), st.booleans(), st.integers(1, 12), st.booleans())
def test_relabel_whatever_is_answered(
    found: dict[str, int | None],
    likely: dict[str, float],
    low: float,
    likelihood: bool,
    depth: int,
    several: bool,
) -> None:
    """No source is a negative, nor what beats one; each label is that of its own document."""
    sources = ("s", "t") if several else ("s",)
    stage = Relabel(yesno(depth), low=low, likelihood=likelihood)
    before = beside(found, *sources)
    one = run(stage, before, Judge(likely))
    after = labels(one)
    shown = [p.document.id for p in before.passages][:depth]
    known = [name for name in shown if name in likely]
    assert all(after[name] != 0 for name in sources)
    assert any(after.values())
    assert {name: after[name] for name in after if name not in shown} == {
        name: label for name, label in labels(before).items() if name not in shown
    }
    if not set(sources) <= set(known) or len(known) < 2:
        assert after == labels(before)
        assert scores(one, "relabel") == {}
        return
    ranked = sorted(known, key=lambda name: (-likely[name], shown.index(name)))
    behind = max(ranked.index(name) for name in sources)
    for place, name in enumerate(ranked):
        if after[name] == 0:
            assert place > behind
            assert place >= len(ranked) * (1 - low)
        elif name not in sources and place > behind and place >= len(ranked) * (1 - low):
            assert after[name] == found[name]
    assert all(after[name] == (found[name] or None) for name in set(shown) - set(known))
    assert (after[ranked[0]] or 0) >= 1 if not several else all(after[n] == 1 for n in sources)
    assert set(scores(one, "relabel")) == set(known)
    assert run(stage, before, Judge(likely)) == one


def test_a_written_passage_is_never_the_new_positive() -> None:
    before = with_mined("a", "b")
    extra = Passage(document("w"), WRITTEN, 0)
    before = example(passages=[*before.passages, extra])
    one = run(Relabel(yesno()), before, Judge({"w": 0.9, "s": 0.5, "a": 0.2, "b": 0.1}))
    assert labels(one) == {"s": 1, "a": 0, "b": 0, "w": None}


def test_a_failed_permutation_relabels_nothing() -> None:
    """The order in which the passages came is no judgement."""
    stage = Relabel(parse("sliding"), likelihood=False)
    before = beside({"a": None, "b": 0, "c": None}, "s")
    assert labels(run(stage, before)) == labels(before)
    partial = run(stage, before, lambda item: order(item, "cbas", named=2))
    assert labels(partial) == labels(before)
    whole = run(stage, before, lambda item: order(item, "csba"))
    assert labels(whole) == {"s": None, "a": 0, "b": 0, "c": 1}


def test_a_cascade_judges_closely_what_is_near_the_top() -> None:
    cheap = {"a": 0.9, "s": 0.8, "b": 0.7, "c": 0.6, "d": 0.1}
    close = {"a": 0.1, "s": 0.9, "b": 0.8}

    def judge(item: Ask[Any]) -> Answer[Any]:
        assert isinstance(item, Grade)
        return Judge(cheap if item.labels == ("yes", "no") else close)(item)

    stage = Relabel(parse("yesno@20 >> grade(labels=4)@3"), likelihood=False)
    one = run(stage, with_mined(*"abcd"), judge)
    assert labels(one) == {"s": 1, "b": None, "a": None, "c": 0, "d": 0}  # s b a c d
    assert set(stage.needs) == {
        Need(Grade, labels=("yes", "no")),
        Need(Grade, labels=("3", "2", "1", "0")),
    }


def test_what_relabel_needs() -> None:
    assert Need(Likelihood) in Relabel(yesno()).needs
    assert Relabel(parse("likelihood")).needs == [Need(Likelihood)]


# teacher


@given(MINED, LIKELY, st.integers(0, 5), st.integers(1, 8), st.booleans(), st.integers(0, 3))
def test_a_teacher_scores_every_document_for_itself(
    found: dict[str, int | None],
    likely: dict[str, float],
    n: int,
    depth: int,
    shuffle: bool,
    seed: int,
) -> None:
    judge = Judge(likely)
    stage = Teacher(yesno(depth), n=n, shuffle=shuffle, seed=seed)
    before = beside(found, "s")
    one = run(stage, before, judge)
    unlabelled = [name for name in found if found[name] is None]
    wanted = ["s", *(name for name in found if found[name] is not None), *unlabelled]
    wanted = wanted[: min(n or len(wanted), depth)]
    assert sorted(judge.judged) == sorted(wanted)
    assert scores(one, "teacher") == {name: likely[name] for name in wanted if name in likely}
    assert labels(one) == labels(before)
    assert one.kept is bool(scores(one, "teacher"))
    assert run(stage, before, Judge(likely)) == one


@pytest.mark.parametrize(
    ("method", "by"), [("sliding", "score"), ("yesno >> sliding@5", "score"), ("yesno", "rank")]
)
def test_a_permutation_survives_as_ranks(method: str, by: str) -> None:
    best = "bsca"

    def judge(item: Ask[Any]) -> Answer[Any]:
        if isinstance(item, Order):
            return order(item, best)
        return Judge({name: 1 - best.index(name) / 9 for name in best})(item)

    one = run(Teacher(parse(method), by=by, score="listwise"), with_mined("a", "b", "c"), judge)
    assert scores(one, "listwise") == {"b": -1, "s": -2, "c": -3, "a": -4}
    assert one.verdicts[0][1:] == (True, 4, 1, "minus the rank")


@pytest.mark.parametrize("named", [None, 1])
def test_an_order_that_no_model_gave_is_no_teacher(named: int | None) -> None:
    def judge(item: Ask[Any]) -> Answer[Any]:
        return FAILED if named is None else order(item, "cbas", named)

    one = run(Teacher(parse("sliding")), with_mined("a", "b"), judge)
    assert scores(one, "teacher") == {}
    assert (one.kept, one.verdicts[0][2:]) == (False, (0, 1, ""))


def test_a_reply_that_is_whole_the_second_time_counts() -> None:
    asked: list[Ask[Any]] = []

    def judge(item: Ask[Any]) -> Answer[Any]:
        asked.append(item)
        if item.problem:
            return order(item, "bas")
        return Answer(status=Status.MALFORMED, problem="no identifiers")

    one = run(Teacher(parse("sliding")), with_mined("a", "b"), judge)
    assert len(asked) == 2
    assert scores(one, "teacher") == {"b": -1, "a": -2, "s": -3}


def shown(stage: Stage, one: Example) -> list[str]:
    """The documents of the one window, as they stand in it."""
    seen: list[str] = []

    def judge(item: Ask[Any]) -> Answer[Any]:
        assert isinstance(item, Order)
        seen.extend(doc.id for doc in item.docs)
        return order(item, "")

    run(stage, one, judge)
    return seen


def test_passages_are_shown_in_first_stage_order_or_shuffled() -> None:
    method = parse("sliding")
    found = [Passage(document("s"), SOURCE, 1, {"bm25": 7.0})]
    found += [mined(name, 0, bm25=score) for name, score in zip("abcd", (9, 8, 5, 6), strict=True)]
    one = example(passages=found)
    assert shown(Teacher(method), one) == ["a", "b", "s", "d", "c"]
    # No first stage knows them all.
    assert shown(Teacher(method), with_mined("a", "b")) == ["s", "a", "b"]
    orders = {tuple(shown(Teacher(method, shuffle=True, seed=i), one)) for i in range(30)}
    assert len(orders) > 20
    first = {each[0] for each in orders}
    assert first == set("sabcd")


def test_queries_beside_the_query_are_no_passages() -> None:
    other = Passage(document("s#0-1", "another query"), QUERY)
    before = example(passages=[*with_mined("a").passages, other])
    likely = {"s": 0.9, "a": 0.1, "s#0-1": 0.99}
    for stage in (Denoise(yesno()), Relabel(yesno()), Teacher(yesno())):
        judge = Judge(likely)
        one = run(stage, before, judge)
        assert "s#0-1" not in judge.judged
        assert one.passages[-1] == other


def test_a_source_that_has_no_passage_yet_is_scored_too() -> None:
    one = run(Teacher(yesno()), example("s", "t"), Judge({"s": 0.5, "t": 0.25}))
    assert scores(one, "teacher") == {"s": 0.5, "t": 0.25}
    assert labels(one) == {"s": 1, "t": 1}


# all of them


@pytest.mark.parametrize(
    "stage",
    [
        Denoise(parse("grade(labels=1-5)@7"), negative=0.2, unsure=True),
        Relabel(parse("yesno@20 >> grade(labels=4)@5"), low=0.25, likelihood=False),
        Teacher(parse("psc(sliding, samples=3)@9"), score="listwise", shuffle=True, seed=4),
    ],
)
def test_what_is_written_can_be_read_again(stage: Stage) -> None:
    given_ = spec.split(str(stage))
    assert given_.name == stage.name
    bound: dict[str, Any] = spec.bind(stage.name, type(stage), given_.parameters)
    assert type(stage)(parse(given_.inner), **bound) == stage


@pytest.mark.parametrize("stage", [Denoise, Relabel, Teacher])
def test_they_need_a_method(stage: Callable[[], Stage]) -> None:
    with pytest.raises(SpecError, match="needs a reranking method"):
        stage()


@pytest.mark.parametrize(
    ("stage", "wrong"),
    [
        (Denoise, {"negative": 0.9, "positive": 0.9}),
        (Denoise, {"positive": 1.1}),
        (Denoise, {"least": -1}),
        (Relabel, {"low": 0.0}),
        (Relabel, {"least": -1}),
        (Teacher, {"n": -1}),
        (Teacher, {"by": "place"}),
        (Teacher, {"score": "bm25"}),
        (Teacher, {"score": "two words"}),
    ],
)
def test_wrong_parameters(stage: Callable[..., Stage], wrong: dict[str, object]) -> None:
    with pytest.raises(SpecError):
        stage(yesno(), **wrong)


@pytest.mark.parametrize(
    "method", ["yesno@20", "grade(labels=4)@20", "likelihood", "sliding", "setwise", "adaptive"]
)
def test_through_the_prompts_with_a_perfect_model(method: str) -> None:
    """What the judgements say is better than the source becomes positive, the worst a negative."""
    grades = {"s": 2, "a": 1, "b": 3, "c": 0, "d": 0, "e": 0}
    oracle, prompts = Oracle({"s#0": grades}), PromptSet()

    def judge(item: Ask[Any]) -> Answer[Any]:
        request = prompts.render(item)
        (reply,) = asyncio.run(oracle.answer([request]))
        return prompts.parse(request, reply)

    before = with_mined(*"abcde")
    stage = Relabel(parse(method), likelihood=method == "yesno@20")
    one = stage.settle(before, drive(stage.plan(before, Index()), judge), None)
    assert labels(one) == {"s": None, "a": None, "b": 1, "c": 0, "d": 0, "e": 0}
    teacher = Teacher(parse(method))
    taught = scores(teacher.settle(one, drive(teacher.plan(one, Index()), judge), None), "teacher")
    assert sorted(taught, key=lambda name: -taught[name])[:3] == ["b", "s", "a"]
