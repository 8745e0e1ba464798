from __future__ import annotations

import math
from dataclasses import replace
from statistics import fmean, pstdev
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrank import evaluate
from llmrank.api.simulation import (
    CALL_TOKENS,
    Case,
    Noise,
    Prediction,
    Simulated,
    falling,
    judged_cases,
    ndcg,
    simulate,
    synthetic_cases,
)
from llmrank.errors import CapabilityError, InputError
from llmrank.plan import Ask, Attend, Grade, Likelihood, Order, Pick, Write, drive
from llmrank.rerank import parse
from llmrank.types import Candidate, Document, Query
from tests.effort import examples

QUERY = Query("q", "small query")
DOCS = tuple(Document(f"d{i}", "") for i in range(40))
CASE = Case(QUERY, tuple(map(Candidate, DOCS)), {f"d{i}": i % 4 for i in range(40)})
NOISY = Noise(1.1)


def asks() -> list[Ask[Any]]:
    some = DOCS[:8]
    return [
        Order(QUERY, some),
        Order(QUERY, some, sample=1),
        Order(QUERY, some[::-1]),
        Pick(QUERY, some, 3),
        Pick(QUERY, some, by="labels"),
        Attend(QUERY, some),
        *(Grade(QUERY, doc) for doc in some),
        *(Likelihood(QUERY, doc) for doc in some),
    ]


def utilities(noise: Noise, item: Attend, seed: int = 0) -> tuple[float, ...]:
    value = Simulated([CASE], noise, seed)(item).value
    assert isinstance(value, tuple)
    return value


def test_without_noise_every_kind_of_answer_follows_the_grades() -> None:
    judge = Simulated([CASE], Noise())
    order = judge(Order(QUERY, DOCS[:6])).value
    assert order is not None
    assert order.order == (3, 2, 1, 5, 0, 4)
    assert order.named is None
    assert judge(Pick(QUERY, DOCS[:6], 2)).value == ((3, 2), None)
    choice = judge(Pick(QUERY, DOCS[:4], by="labels")).value
    assert choice is not None
    assert choice.best == (3,)
    assert choice.probabilities is not None
    ratios = [b / a for a, b in zip(choice.probabilities, choice.probabilities[1:], strict=False)]
    assert ratios == pytest.approx([math.e] * 3)
    assert judge(Attend(QUERY, DOCS[:4])).value == (0, 1, 2, 3)
    likely = [judge(Likelihood(QUERY, doc)).value for doc in DOCS[:4]]
    assert [value.mean for value in likely if value] == sorted(v.mean for v in likely if v)
    assert all(value and value.tokens == 2 and value.total < 0 for value in likely)


def test_grades_are_likeliest_at_their_own_label() -> None:
    judge = Simulated([CASE], Noise())
    for doc, grade in zip(DOCS[:4], range(4), strict=True):
        found = judge(Grade(QUERY, doc, ("3", "2", "1", "0"))).value
        assert found is not None
        assert found.probabilities.index(max(found.probabilities)) == 3 - grade
        assert math.fsum(found.probabilities) == pytest.approx(1)
    first, *_, last = (judge(Grade(QUERY, doc)).value for doc in DOCS[:4])
    assert first is not None
    assert last is not None
    assert math.log(last.probabilities[0] / last.probabilities[1]) == pytest.approx(1.5)
    assert first.probabilities == pytest.approx(last.probabilities[::-1])


@pytest.mark.parametrize("fresh", ["gumbel", "gaussian"])
def test_answers_depend_on_the_ask_and_the_seed_alone(fresh: str) -> None:
    noise = Noise(1.1, fresh=fresh)
    forwards, backwards = Simulated([CASE], noise, 5), Simulated([CASE], noise, 5)
    found = [forwards(item) for item in asks()]
    assert [backwards(item) for item in reversed(asks())][::-1] == found
    assert [forwards(item) for item in asks()] == found
    assert found[0] != found[1]
    marked = replace(asks()[0], stage="a stage of a cascade")
    assert forwards(marked) == found[0]
    assert [Simulated([CASE], noise, 6)(item) for item in asks()] != found


@pytest.mark.parametrize("fresh", ["gumbel", "gaussian"])
def test_noise_has_the_stated_deviation_and_shares(fresh: str) -> None:
    noise = Noise(2.0, fixed=0.25, fresh=fresh)
    many = tuple(Document(f"n{i}", "") for i in range(4000))
    first, second = (utilities(noise, Attend(QUERY, many, sample=s)) for s in (0, 1))
    assert fmean(first) == pytest.approx(0, abs=0.15)
    assert pstdev(first) == pytest.approx(2.0, rel=0.05)
    shared = fmean(a * b for a, b in zip(first, second, strict=True)) / 4.0
    assert shared == pytest.approx(0.25, abs=0.06)
    skew = fmean((value / 2) ** 3 for value in first)
    # Of a standard Gumbel's skewness 1.14 as much as the share of its variance leaves.
    assert skew == pytest.approx(1.14 * 0.75**1.5 if fresh == "gumbel" else 0, abs=0.2)


def test_fixed_noise_is_the_same_in_every_call() -> None:
    noise = Noise(1.0, fixed=1.0)
    few, more = utilities(noise, Attend(QUERY, DOCS[:3])), utilities(noise, Attend(QUERY, DOCS))
    assert few == more[:3]
    assert few != utilities(noise, Attend(QUERY, DOCS[:3]), seed=1)


def test_the_last_place_shown_loses_the_bias() -> None:
    plain, biased = (utilities(Noise(1.0, bias=b), Attend(QUERY, DOCS[:5])) for b in (0.0, 2.0))
    lost = [a - b for a, b in zip(plain, biased, strict=True)]
    assert lost == pytest.approx([0, 0.5, 1, 1.5, 2])


def test_what_a_judge_cannot_answer_is_an_error() -> None:
    with pytest.raises(CapabilityError, match="Write"):
        Simulated([CASE], NOISY)(Write("hyde", ()))


@pytest.mark.parametrize(
    "given",
    [
        {"deviation": -1.0},
        {"deviation": math.inf},
        {"fixed": 1.1},
        {"fresh": "cauchy"},
        {"bias": math.nan},
        {"scale": 0.0},
    ],
)
def test_impossible_noise_is_an_error(given: dict[str, float]) -> None:
    with pytest.raises(InputError):
        Noise(**given)  # type: ignore[arg-type]


@examples(60)
@given(
    ranked=st.lists(st.integers(-2, 4), min_size=1, max_size=25),
    elsewhere=st.lists(st.integers(-2, 4), max_size=15),
)
def test_ndcg_is_that_of_trec_eval(ranked: list[int], elsewhere: list[int]) -> None:
    qrels = {"q": {f"d{i}": grade for i, grade in enumerate([*ranked, *elsewhere])}}
    run = {"q": [(f"d{i}", float(-i)) for i in range(len(ranked))]}
    expected = evaluate.measure(run, qrels, ["nDCG@10"])["nDCG@10"]["q"]
    assert ndcg(ranked, qrels["q"].values()) == pytest.approx(expected, abs=1e-9)


def test_costs_are_counted() -> None:
    names = ("sliding", "yesno", "yesno@100 >> sliding(window=4, stride=2)@8")
    cases = synthetic_cases(3)
    first, sliding, yesno, cascade = simulate(
        [parse(n) for n in names], cases, NOISY, seeds=2, passage_tokens=10
    )
    assert (first.method, first.calls, first.gain) == ("first stage", 0, None)
    assert (sliding.calls, sliding.rounds, sliding.shown) == (9, 9, 180)
    assert (yesno.calls, yesno.rounds, yesno.shown) == (100, 1, 100)
    assert (cascade.calls, cascade.rounds, cascade.shown) == (103, 4, 112)
    assert sliding.tokens == 180 * 10 + 9 * CALL_TOKENS
    assert cascade.method == str(parse(names[2]))


def test_a_perfect_judge_puts_the_best_first() -> None:
    cases = synthetic_cases(5)
    (first, found) = simulate([parse("sliding")], cases, Noise(), seeds=2)
    assert found.ndcg.mean == pytest.approx(1)
    assert found.error == 0
    assert found.gain is not None
    assert found.gain.difference == pytest.approx(1 - first.ndcg.mean)
    assert found.gain.n == found.ndcg.n == 5


def test_the_depth_of_ndcg() -> None:
    cases = synthetic_cases(5, 30)
    judge = Simulated(cases, NOISY, 0)
    for depth in (1, 20):
        (first, found) = simulate([parse("sliding")], cases, NOISY, seeds=1, depth=depth)
        for case in cases:
            ranked = drive(parse("sliding").plan(case.query, case.candidates), judge)
            grades = [case.grades[case.candidates[i].document.id] for i in ranked.order]
            assert found.values[case.query.id] == ndcg(grades, case.grades.values(), depth)
            given = [case.grades[c.document.id] for c in case.candidates]
            assert first.values[case.query.id] == ndcg(given, case.grades.values(), depth)
    with pytest.raises(InputError):
        simulate([], cases, NOISY, depth=0)


def test_a_method_is_measured_alike_alone_and_among_others() -> None:
    cases = synthetic_cases(4)
    sliding, yesno = parse("sliding(window=10, stride=5)"), parse("yesno")
    together = simulate([yesno, sliding], cases, NOISY, seeds=3)
    assert simulate([sliding], cases, NOISY, seeds=3)[1] == together[2]
    assert simulate([sliding], cases[:2], NOISY, seeds=3)[1].values == {
        query: together[2].values[query] for query in ("q0", "q1")
    }


def test_the_error_is_that_of_repeated_simulations() -> None:
    cases = synthetic_cases(4, 30)
    method, seeds = parse("yesno@30"), 24
    found = simulate([method], cases, NOISY, seeds=seeds)[1]
    judges = [simulate_one(method_seed, cases) for method_seed in range(seeds)]
    assert found.ndcg.mean == pytest.approx(fmean(judges))
    assert found.error == pytest.approx(pstdev(judges) / math.sqrt(seeds), rel=0.6)


def simulate_one(seed: int, cases: list[Case]) -> float:
    """Mean nDCG@10 of yesno under the judge of one seed, by evaluate."""
    judge = Simulated(cases, NOISY, seed)
    run = {}
    for case in cases:
        found = [judge(Grade(case.query, c.document)).value for c in case.candidates]
        scores = [value.probabilities[0] for value in found if value]
        ids = (c.document.id for c in case.candidates)
        run[case.query.id] = list(zip(ids, scores, strict=True))
    values = evaluate.measure(run, {c.query.id: c.grades for c in cases}, ["nDCG@10"])["nDCG@10"]
    return fmean(values.values())


def test_more_noise_is_worse_and_so_is_a_second_pass_over_it() -> None:
    cases = synthetic_cases(25)
    once, twice = parse("sliding"), parse("sliding(passes=3)")
    low, high = (simulate([once, twice], cases, Noise(d), seeds=3) for d in (0.8, 1.6))
    assert low[1].ndcg.mean > high[1].ndcg.mean + 0.05
    assert high[1].ndcg.mean > high[2].ndcg.mean


@pytest.mark.parametrize("wanted", [0.3, 0.5, 0.7, 1.0])
def test_drawn_data_have_the_wanted_first_stage(wanted: float) -> None:
    cases = synthetic_cases(50, 100, first_stage=wanted)
    (first,) = simulate([], cases, NOISY, seeds=1)
    assert first.ndcg.mean == pytest.approx(wanted, abs=0.01)
    grades = [grade for case in cases for grade in case.grades.values()]
    assert [grades.count(g) / 5000 for g in range(4)] == pytest.approx(
        [0.70, 0.12, 0.12, 0.06], abs=0.02
    )
    assert all(any(case.grades.values()) for case in cases)


def test_a_first_stage_below_chance_is_an_error() -> None:
    with pytest.raises(InputError, match="random order"):
        synthetic_cases(first_stage=0.05)
    with pytest.raises(InputError):
        synthetic_cases(0)


@examples(20)
@given(queries=st.integers(1, 4), n=st.integers(1, 30), seed=st.integers(0, 99))
def test_drawn_data_of_any_size(queries: int, n: int, seed: int) -> None:
    cases = synthetic_cases(queries, n, first_stage=1.0, seed=seed)
    assert [len(case.candidates) for case in cases] == [n] * queries
    assert cases == synthetic_cases(queries, n, first_stage=1.0, seed=seed)


def test_falling_finds_where_a_value_is_taken() -> None:
    assert falling(lambda x: 5 - x, 3.0, 0.0, 8.0) == pytest.approx(2.0, abs=1e-5)


def test_nothing_to_simulate_is_an_error() -> None:
    with pytest.raises(InputError):
        simulate([parse("yesno")], [], NOISY)
    with pytest.raises(InputError):
        simulate([parse("yesno")], [CASE], NOISY, seeds=0)


def test_one_query_and_one_seed_have_no_intervals() -> None:
    found: Prediction = simulate([parse("yesno")], [CASE], NOISY, seeds=1)[1]
    assert found.ndcg.interval is None
    assert found.error is None


def test_judged_queries_of_a_run(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("run")
    lines = [f"q{q} Q0 d{d} 0 {9 - d} x\n" for q in range(4) for d in range(5)]
    (folder / "run.trec").write_text("".join(lines))
    (folder / "qrels").write_text("q1 0 d4 1\nq3 0 d0 3\nq3 0 elsewhere 2\nq9 0 d0 1\n")
    cases = judged_cases(folder / "run.trec", folder / "qrels", n=3)
    assert [case.query.id for case in cases] == ["q1", "q3"]
    assert [c.document.id for c in cases[0].candidates] == ["d0", "d1", "d2"]
    (first,) = simulate([], cases, NOISY, seeds=1)
    assert first.values == pytest.approx({"q1": 0, "q3": 3 / (3 + 2 / math.log2(3))})
    assert len(judged_cases(folder / "run.trec", folder / "qrels", limit=1)) == 1
    (folder / "qrels").write_text("q9 0 d0 1\n")
    with pytest.raises(InputError, match="no query"):
        judged_cases(folder / "run.trec", folder / "qrels")
