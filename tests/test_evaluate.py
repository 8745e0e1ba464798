from __future__ import annotations

import itertools
import math
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrank.errors import InputError, MissingExtra
from llmrank.evaluate import (
    MEASURES,
    Qrels,
    Run,
    compare,
    evaluate,
    interval,
    label,
    measure,
    rank_correlation,
)
from tests.effort import examples

pytest.importorskip("ir_measures")
pytrec_eval = pytest.importorskip("pytrec_eval")
DATA = (Path(__file__).parents[1] / "../shared/data").resolve()


def one(run: list[tuple[str, float]], judged: dict[str, int], relevant: int = 1) -> list[float]:
    values = measure({"q": run}, {"q": judged}, relevant=relevant)
    return [values[name]["q"] for name in MEASURES]


def listed(*docs: str) -> list[tuple[str, float]]:
    return [(doc, float(len(docs) - i)) for i, doc in enumerate(docs)]


GRADED = {"a": 3, "b": 2, "c": 1, "n": 0}
IDEAL = 3 + 2 / math.log2(3) + 1 / 2


@pytest.mark.parametrize(
    ("docs", "relevant", "expected"),
    [
        ("abc", 1, [1.0, 1.0, 1.0, 1.0]),
        ("bxac", 1, [(2 + 3 / 2 + 1 / math.log2(5)) / IDEAL, (1 + 2 / 3 + 3 / 4) / 3, 1.0, 1.0]),
        ("bxac", 2, [(2 + 3 / 2 + 1 / math.log2(5)) / IDEAL, (1 + 2 / 3) / 2, 1.0, 1.0]),
        ("bxac", 3, [(2 + 3 / 2 + 1 / math.log2(5)) / IDEAL, 1 / 3, 1 / 3, 1.0]),
        ("bxac", 4, [(2 + 3 / 2 + 1 / math.log2(5)) / IDEAL, 0.0, 0.0, 0.0]),
        ("nxc", 1, [1 / 2 / IDEAL, 1 / 9, 1 / 3, 1 / 3]),
        ("nx", 1, [0.0, 0.0, 0.0, 0.0]),
    ],
)
def test_hand_computed(docs: str, relevant: int, expected: list[float]) -> None:
    assert one(listed(*docs), GRADED, relevant) == pytest.approx(expected)


def test_cutoffs() -> None:
    docs = [f"x{i}" for i in range(101)]
    at = {rank: one(listed(*docs), {docs[rank - 1]: 1}) for rank in (10, 11, 100, 101)}
    assert at[10] == pytest.approx([1 / math.log2(11), 0.1, 0.1, 1.0])
    assert at[11] == pytest.approx([0.0, 1 / 11, 0.0, 1.0])
    assert at[100] == pytest.approx([0.0, 0.01, 0.0, 1.0])
    assert at[101] == pytest.approx([0.0, 1 / 101, 0.0, 0.0])


@pytest.mark.parametrize(
    ("scores", "first"),
    [
        ((1.0, 1.0), "b"),  # a tie: the larger id stands first
        ((1.0 + 1e-8, 1.0), "b"),  # still a tie as float32
        ((1.0 + 1.2e-7, 1.0), "a"),
        ((16777217.0, 16777216.0), "b"),
        ((1e300, 1e299), "b"),  # both overflow to infinity
        ((0.0, -0.0), "b"),
        ((1.0, -math.inf), "a"),
    ],
)
def test_ties_as_trec_eval_breaks_them(scores: tuple[float, float], first: str) -> None:
    rank = 1 if first == "a" else 2
    expected = [1 / math.log2(rank + 1), 1 / rank, 1 / rank, 1.0]
    run = [("a", scores[0]), ("b", scores[1])]
    assert one(run, {"a": 1}) == pytest.approx(expected)
    assert one(run[::-1], {"a": 1}) == pytest.approx(expected)


def test_reciprocal_rank_departs_from_the_msmarco_tie_rule() -> None:
    ir_measures = pytest.importorskip("ir_measures")
    [plain] = ir_measures.iter_calc(
        [ir_measures.RR @ 10], {"q": {"a": 1}}, {"q": {"a": 1.0, "b": 1.0}}
    )
    assert plain.value == 1.0
    assert measure({"q": [("a", 1.0), ("b", 1.0)]}, {"q": {"a": 1}}, ["RR@10"]) == {
        "RR@10": {"q": 0.5}
    }


IDS = [f"d{i}" for i in range(12)] + ["D1", "d", "é", "日", "🐦", "-"]
SCORES = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, 1.0 + 1e-8, 1.0 + 1.2e-7, 1e300, math.inf, -math.inf, 2.5]),
    st.floats(allow_nan=False),
)
RESULTS = st.dictionaries(st.sampled_from(IDS), SCORES, max_size=len(IDS))
JUDGED = st.dictionaries(st.sampled_from(IDS), st.integers(-2, 4), min_size=1)
QUERIES = st.sampled_from(["1", "2", "3", "4"])


def trec_eval(run: Run, qrels: Qrels, relevant: int) -> dict[str, dict[str, float]]:
    names = {"nDCG@10": "ndcg_cut_10", "AP": "map", "RR@10": "recip_rank", "R@100": "recall_100"}
    evaluator = pytrec_eval.RelevanceEvaluator(
        # It crashes on a query whose grades are all negative.
        {query: dict(judged) for query, judged in qrels.items() if max(judged.values()) >= 0},
        set(names.values()),
        relevance_level=relevant,
    )
    found = evaluator.evaluate({query: dict(results) for query, results in run.items()})
    values: dict[str, dict[str, float]] = {name: {} for name in names}
    for name, query in itertools.product(names, qrels):
        value = found.get(query, {}).get(names[name], 0.0)
        values[name][query] = 0.0 if name == "RR@10" and value < 1 / 10.5 else value
    return values


@examples(150)
@given(
    st.dictionaries(QUERIES, RESULTS),
    st.dictionaries(QUERIES, JUDGED, min_size=1),
    st.integers(1, 3),
)
def test_equals_trec_eval(
    results: dict[str, dict[str, float]], qrels: dict[str, dict[str, int]], relevant: int
) -> None:
    run = {query: list(docs.items()) for query, docs in results.items()}
    expected = trec_eval(run, qrels, relevant)
    found = measure(run, qrels, relevant=relevant)
    assert list(found) == list(MEASURES)
    for name in MEASURES:
        assert list(found[name]) == list(qrels)
        assert found[name] == pytest.approx(expected[name], abs=1e-12)


@pytest.mark.parametrize("judged", [{"a": -2}, {"a": -1, "b": -2}, {}])
def test_a_query_without_any_usable_judgement_counts_zero(judged: dict[str, int]) -> None:
    qrels = {"1": judged, "2": {"a": 1}, "3": judged}
    run = {query: listed("a", "b") for query in qrels}
    for values in measure(run, qrels).values():
        assert values == {"1": 0.0, "2": 1.0, "3": 0.0}
    assert measure(run, {"1": judged}, ["AP"]) == {"AP": {"1": 0.0}}


def test_evaluation_reports_what_is_missing() -> None:
    run = {"1": listed("a", "x"), "9": listed("a"), "3": []}
    qrels = {"1": {"a": 1}, "2": {"a": 1}, "3": {"b": 1}}
    found = evaluate("bm25", run, qrels, names=["RR@10", "P@1"])
    assert found.name == "bm25"
    assert found.values["RR@10"] == {"1": 1.0, "2": 0.0, "3": 0.0}
    assert found.means == pytest.approx({"RR@10": 1 / 3, "P@1": 1 / 3})
    assert found.missing == ("2", "3")
    assert found.unjudged == ("9",)
    assert found.unjudged_at_10 == 0.5


def test_unjudged_share_looks_at_the_first_ten() -> None:
    first = [f"j{i}" for i in range(9)]
    qrels = {"1": dict.fromkeys(first, 0), "2": {"a": 1}}
    run = {"1": listed(*first, "x", "y", "z"), "2": listed("a")}
    assert evaluate("run", run, qrels).unjudged_at_10 == pytest.approx((0.1 + 0) / 2)


def test_an_empty_run_scores_zero() -> None:
    found = evaluate("empty", {}, {"1": {"a": 1}})
    assert found.means == dict.fromkeys(MEASURES, 0.0)
    assert (found.missing, found.unjudged, found.unjudged_at_10) == (("1",), (), None)


def test_bad_input() -> None:
    qrels = {"q": {"a": 1}}
    with pytest.raises(InputError, match=r"'q'.*'a' is not a number"):
        measure({"q": [("b", 1.0), ("a", math.nan)]}, qrels)
    with pytest.raises(InputError, match="'b' is listed more than once"):
        measure({"q": [("a", 1.0), ("b", 2.0), ("b", 3.0)]}, qrels)
    with pytest.raises(InputError, match="no judgements"):
        measure({"q": [("a", 1.0)]}, {})
    with pytest.raises(InputError, match="1 or more"):
        measure({}, qrels, relevant=0)


@pytest.mark.parametrize("name", ["", "ndgc@10", "nDCG@0", "nDCG@x", "P", "ERR@10", "Rprec@5"])
def test_unknown_measure(name: str) -> None:
    with pytest.raises(InputError, match=r"not a measure of trec_eval.*nDCG@10"):
        measure({}, {"q": {"a": 1}}, [name])


def test_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ir_measures", None)
    with pytest.raises(MissingExtra, match=r"llmrank\[eval\]"):
        measure({}, {"q": {"a": 1}})


def test_labels() -> None:
    assert [label(name) for name in MEASURES] == ["nDCG@10", "MAP", "MRR@10", "Recall@100"]
    assert label("P@5") == "P@5"


def keyed(values: list[float]) -> dict[str, float]:
    return {f"q{i:03}": value for i, value in enumerate(values)}


def test_compare_counts_and_means() -> None:
    found = compare(keyed([0.5, 0.75, 0.25, 0.1 + 0.2]), keyed([0.25, 0.25, 0.5, 0.3]))
    assert (found.n, found.wins, found.losses, found.ties) == (4, 2, 1, 1)
    assert found.mean_a == pytest.approx(0.45)
    assert found.mean_b == pytest.approx(0.325)
    assert found.difference == pytest.approx(0.125)


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        ([1.0, 1.0], 2 / 4),
        ([1.0, 2.0, 3.0], 2 / 8),
        ([0.1] * 5, 2 / 32),
        ([1.0, 1.0, 1.0, -1.0], 10 / 16),
        ([3.0, -1.0, 0.0], 1.0),
        ([0.3, 0.1, 0.2, 0.0], 2 / 8),
        ([0.0, 0.0], 1.0),
    ],
)
def test_sign_flip_approaches_the_exact_test(differences: list[float], p: float) -> None:
    exact = [
        abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
        >= abs(sum(differences)) - 1e-9
        for signs in itertools.product((1, -1), repeat=len(differences))
    ]
    expected = sum(exact) / len(exact)
    assert expected == p
    zeros = keyed([0.0] * len(differences))
    assert compare(keyed(differences), zeros).p == pytest.approx(expected, abs=0.02)


def test_compare_is_deterministic_and_symmetric() -> None:
    rng = np.random.default_rng(1)
    a, b = keyed(rng.random(30).tolist()), keyed(rng.random(30).tolist())
    shuffled = dict(reversed(a.items()))
    there, back = compare(a, b, seed=3), compare(b, a, seed=3)
    assert compare(shuffled, b, seed=3) == there
    assert compare(a, b, seed=4) != there
    assert there.interval is not None
    assert back.interval is not None
    assert (back.wins, back.losses, back.p) == (there.losses, there.wins, there.p)
    assert (back.interval.low, back.interval.high) == pytest.approx(
        (-there.interval.high, -there.interval.low)
    )


def test_blocks_do_not_bound_the_sample() -> None:
    many = keyed(np.random.default_rng(2).random(3000).tolist())
    found = interval(many, samples=1000)
    assert found.interval is not None
    spread = 1.96 * float(np.std(list(many.values()))) / math.sqrt(3000)
    assert found.interval.low == pytest.approx(found.mean - spread, abs=0.1 * spread)
    assert found.interval.high == pytest.approx(found.mean + spread, abs=0.1 * spread)
    none = compare(many, {query: value + 0.1 for query, value in many.items()}, samples=999)
    assert none.p == pytest.approx(1 / 1000)


@pytest.mark.parametrize("values", [[], [0.25]])
def test_too_few_queries(values: list[float]) -> None:
    estimate = interval(keyed(values))
    found = compare(keyed(values), keyed([0.0] * len(values)))
    assert (estimate.n, estimate.interval) == (len(values), None)
    assert (found.n, found.interval, found.p) == (len(values), None, 1.0)
    assert estimate.mean == pytest.approx(values[0] if values else math.nan, nan_ok=True)
    assert found.difference == pytest.approx(estimate.mean, nan_ok=True)


def test_bootstrap_of_two_values() -> None:
    assert interval({"1": 0.0, "2": 1.0}) == (0.5, (0.0, 1.0), 2)


def test_compare_rejects_what_is_not_paired() -> None:
    with pytest.raises(InputError, match=r"2 queries .*'1'.*same qrels"):
        compare({"1": 1.0, "3": 1.0}, {"2": 1.0, "3": 1.0})
    with pytest.raises(InputError, match="'1' is not a number"):
        interval({"1": math.nan})
    with pytest.raises(InputError, match="at least one sample"):
        interval({"1": 0.0, "2": 1.0}, samples=0)


def test_interval_covers_the_true_mean() -> None:
    rng = np.random.default_rng(7)
    covered = 0
    for trial in range(400):
        found = interval(keyed(rng.beta(0.6, 0.9, 50).tolist()), samples=600, seed=trial).interval
        assert found is not None
        covered += found.low <= 0.4 <= found.high
    assert 0.92 <= covered / 400 <= 0.975


def test_p_is_uniform_when_the_runs_do_not_differ() -> None:
    rng = np.random.default_rng(8)
    ps = []
    for trial in range(400):
        a, b = rng.beta(0.6, 0.9, (2, 40)).tolist()
        ps.append(compare(keyed(a), keyed(b), samples=500, seed=trial).p)
    ranks = np.arange(1, 401) / 400
    assert np.abs(np.sort(ps) - ranks).max() < 0.07  # Kolmogorov-Smirnov at the 5 % level
    assert 0.03 <= np.mean(np.array(ps) <= 0.05) <= 0.08


@pytest.mark.parametrize(
    ("a", "b", "tau"),
    [
        (["x", "y", "z"], ["x", "y", "z"], 1.0),
        (["x", "y", "z"], ["z", "y", "x"], -1.0),
        (["x", "y", "z"], ["x", "z", "y"], 1 / 3),
        (["x", "y", "z"], {"x": 0.9, "y": 0.5, "z": 0.1}, 1.0),
        ({"x": 1.0, "y": 1.0, "z": 2.0}, {"x": 1.0, "y": 2.0, "z": 3.0}, 2 / math.sqrt(6)),
        ({"x": math.inf, "y": math.inf, "z": 0.0}, {"x": 1.0, "y": 1.0, "z": 0.0}, 1.0),
        ({"x": 1.0, "y": 1.0}, {"x": 1.0, "y": 2.0}, math.nan),
        (["x"], ["x"], math.nan),
        ([], [], math.nan),
    ],
)
def test_rank_correlation(
    a: list[str] | dict[str, float], b: list[str] | dict[str, float], tau: float
) -> None:
    assert rank_correlation(a, b) == pytest.approx(tau, nan_ok=True)
    assert rank_correlation(b, a) == pytest.approx(tau, nan_ok=True)


@examples(60)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=20))
def test_rank_correlation_equals_scipy(pairs: list[tuple[int, int]]) -> None:
    stats = pytest.importorskip("scipy.stats")
    a, b = [float(x) for x, _ in pairs], [float(y) for _, y in pairs]
    expected = float(stats.kendalltau(a, b).statistic)
    assert rank_correlation(keyed(a), keyed(b)) == pytest.approx(expected, nan_ok=True)


def test_rank_correlation_rejects_different_ids() -> None:
    with pytest.raises(InputError, match="same ids"):
        rank_correlation(["x"], ["y"])
    with pytest.raises(InputError, match="more than once"):
        rank_correlation(["x", "x"], ["x"])
    with pytest.raises(InputError, match="not a number"):
        rank_correlation({"x": math.nan, "y": 1.0}, ["x", "y"])


def read_run(path: Path) -> Run:
    run: dict[str, list[tuple[str, float]]] = defaultdict(list)
    for line in path.read_text("utf-8").splitlines():
        query, _, doc, _, score, _ = line.split()
        run[query].append((doc, float(score)))
    return run


def read_qrels(path: Path) -> Qrels:
    qrels: dict[str, dict[str, int]] = defaultdict(dict)
    for line in path.read_text("utf-8").splitlines():
        query, _, doc, grade = line.split()
        qrels[query][doc] = int(grade)
    return qrels


@pytest.mark.parametrize(
    ("collection", "run", "relevant", "expected"),
    [
        ("scifact", "bm25", 1, {"nDCG@10": 0.6789, "R@100": 0.9253}),
        ("cranfield", "bm25", 1, {"nDCG@10": 0.3425}),
        ("dl19", "BM25", 2, {"nDCG@10": 0.5058}),
        ("dl19", "SPLADE_P_P_ENSEMBLE_DISTIL", 2, {"nDCG@10": 0.7308}),
    ],
)
def test_published_figures(
    collection: str, run: str, relevant: int, expected: dict[str, float]
) -> None:
    folder = DATA / collection
    if not folder.exists():
        pytest.skip("shared/data is not here")
    results, qrels = read_run(folder / f"runs/{run}.trec"), read_qrels(folder / "qrels.tsv")
    found = evaluate(run, results, qrels, relevant=relevant)
    assert {name: round(found.means[name], 4) for name in expected} == expected
    for name, values in trec_eval(results, qrels, relevant).items():
        assert found.values[name] == pytest.approx(values, abs=1e-12)
