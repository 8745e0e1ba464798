"""Measures as trec_eval computes them, their uncertainty over queries, and agreement of orders.

A run is `{query id: [(document id, score), ...]}` in any order and qrels are
`{query id: {document id: grade}}`. Every measure here ranks by trec_eval's rule: score descending
after rounding to float32, equal scores by document id descending.
"""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llmrank.errors import InputError, MissingExtra

Run: TypeAlias = Mapping[str, Sequence[tuple[str, float]]]
Qrels: TypeAlias = Mapping[str, Mapping[str, int]]
Values: TypeAlias = Mapping[str, float]  # query id -> value of one measure
Floats: TypeAlias = NDArray[np.float64]

MEASURES = ("nDCG@10", "AP", "RR@10", "R@100")
LEVEL = 0.95  # of every bootstrap interval
SAMPLES = 10_000
JUDGED_DEPTH = 10
TIE = 1e-9  # differences up to this are rounding, not wins

_LABELS = {"AP": "MAP", "RR": "MRR", "R": "Recall"}
_NAME = re.compile(r"(\w+?)(?:@([1-9]\d*))?")
_CELLS = 1_000_000  # resampled values held in memory at once


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a run scores: `values` is measure name -> query id -> value over all judged queries.

    `missing` are judged queries without results, which count 0; `unjudged` are queries of the run
    without judgements, which are left out. `unjudged_at_10` is the share of unjudged documents
    among a query's first 10, averaged over the queries that have results (1 - Judged@10), and
    None where no judged query has any.
    """

    name: str
    values: Mapping[str, Values]
    missing: tuple[str, ...]
    unjudged: tuple[str, ...]
    unjudged_at_10: float | None

    @property
    def means(self) -> dict[str, float]:
        """Mean of each measure over all judged queries, by measure name."""
        return {name: math.fsum(v.values()) / len(v) for name, v in self.values.items()}


class Interval(NamedTuple):
    """The two ends of a 95 % interval, in the unit of the measure."""

    low: float
    high: float


class Estimate(NamedTuple):
    """A mean over n queries and its interval: None below two queries, mean nan without any."""

    mean: float
    interval: Interval | None
    n: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """Run a against run b in one measure, over the same n queries.

    `difference` is mean_a - mean_b, `interval` its 95 % interval and `p` the two-sided p-value;
    `wins` counts queries where a is better. Below two queries the interval is None and p is 1;
    without any the means are nan.
    """

    n: int
    mean_a: float
    mean_b: float
    difference: float
    interval: Interval | None
    p: float
    wins: int
    losses: int
    ties: int


def label(name: str) -> str:
    """The usual name of a measure's mean: AP -> MAP, RR@10 -> MRR@10, R@100 -> Recall@100."""
    stem, at, depth = name.partition("@")
    return _LABELS.get(stem, stem) + at + depth


def measure(
    run: Run, qrels: Qrels, names: Sequence[str] = MEASURES, relevant: int = 1
) -> dict[str, dict[str, float]]:
    """Measure name -> query id -> value, for every judged query, equal to trec_eval's.

    `names` are trec_eval's measures as ir_measures writes them: nDCG@10, AP, RR@10, R@100, P@5.
    `relevant` is the lowest grade that counts as relevant in binary measures (AP, RR, R, P, ...;
    trec_eval's -l): 1 for most collections, 2 for TREC Deep Learning passages. nDCG ignores it:
    its gain is the grade itself and its discount log2(rank + 1). Unjudged documents are not
    relevant. A judged query counts 0 where the run has no results or no document is relevant.

    Raises InputError for empty qrels, a NaN score, a document listed twice for a query, or a
    measure that trec_eval lacks, and MissingExtra without ir_measures.
    """
    return _measure(dict(_rankings(run, qrels)), qrels, names, relevant)


def evaluate(
    name: str, run: Run, qrels: Qrels, *, names: Sequence[str] = MEASURES, relevant: int = 1
) -> Evaluation:
    """Measure a run as `measure` does, and say which queries and documents lack what."""
    ranked = dict(_rankings(run, qrels))
    return Evaluation(
        name,
        _measure(ranked, qrels, names, relevant),
        missing=tuple(query for query in qrels if query not in ranked),
        unjudged=tuple(query for query in run if query not in qrels),
        unjudged_at_10=_unjudged_share(ranked, qrels),
    )


def interval(values: Values, *, samples: int = SAMPLES, seed: int = 0) -> Estimate:
    """Mean of per-query values with its 95 % percentile-bootstrap interval over queries."""
    array = _array(values, sorted(values))
    return Estimate(_mean(array), _bootstrap(array, samples, seed), len(array))


def compare(a: Values, b: Values, *, samples: int = SAMPLES, seed: int = 0) -> Comparison:
    """Compare two runs by their per-query values of one measure, paired by query.

    The interval of mean(a) - mean(b) is the percentile bootstrap over queries. The p-value is that
    of the randomisation test (Fisher): how often flipping the signs of the per-query differences
    at random gives a mean at least as far from 0, with the observed one counted in, so it is never
    below 1 / (samples + 1). The same seed gives the same figures. Raises InputError when the two
    do not hold the same queries or hold a NaN.
    """
    if odd := sorted(a.keys() ^ b.keys()):
        raise InputError(
            f"{len(odd)} queries are in one run's values only, such as {odd[0]!r}",
            remedy="measure both runs with the same qrels",
        )
    queries = sorted(a)
    first, second = _array(a, queries), _array(b, queries)
    differences = first - second
    differences[np.abs(differences) <= TIE] = 0.0
    wins, losses = int((differences > 0).sum()), int((differences < 0).sum())
    return Comparison(
        n=len(queries),
        mean_a=_mean(first),
        mean_b=_mean(second),
        difference=_mean(differences),
        interval=_bootstrap(differences, samples, seed),
        p=_sign_flip(differences, samples, seed),
        wins=wins,
        losses=losses,
        ties=len(queries) - wins - losses,
    )


def rank_correlation(
    a: Sequence[str] | Mapping[str, float], b: Sequence[str] | Mapping[str, float]
) -> float:
    """Kendall's tau-b between two orders of the same ids, from -1 to 1.

    An order is a sequence of distinct ids, best first, or a score for each id, where equal scores
    are ties. It is nan when there are fewer than two ids or all are tied on one side. Raises
    InputError when the ids differ, one is repeated or a score is NaN. Takes O(n^2) time.
    """
    scores_a, scores_b = _scores(a), _scores(b)
    if scores_a.keys() != scores_b.keys():
        raise InputError("a rank correlation needs the same ids on both sides")
    ids = sorted(scores_a)
    x, y = _array(scores_a, ids), _array(scores_b, ids)
    concordance = untied_x = untied_y = 0.0
    for i in range(1, len(ids)):
        # Comparisons, not subtraction: infinite scores may be tied too.
        above_x = (x[i:] > x[i - 1]).astype(np.float64) - (x[i:] < x[i - 1])
        above_y = (y[i:] > y[i - 1]).astype(np.float64) - (y[i:] < y[i - 1])
        concordance += float(above_x @ above_y)
        untied_x += float(np.abs(above_x).sum())
        untied_y += float(np.abs(above_y).sum())
    scale = math.sqrt(untied_x * untied_y)
    return concordance / scale if scale else math.nan


def _rankings(run: Run, qrels: Qrels) -> Iterator[tuple[str, list[str]]]:
    """Each judged query that has results, with its document ids in trec_eval's order."""
    for query, results in run.items():
        if not results or query not in qrels:
            continue
        ids = [doc for doc, _ in results]
        with np.errstate(over="ignore"):
            scores = np.array([score for _, score in results], dtype=np.float64).astype(np.float32)
        if np.isnan(scores).any():
            doc = ids[int(np.isnan(scores).argmax())]
            raise InputError(f"query {query!r}: the score of document {doc!r} is not a number")
        if len(set(ids)) < len(ids):
            doc = next(doc for i, doc in enumerate(ids) if doc in ids[:i])
            raise InputError(f"query {query!r}: document {doc!r} is listed more than once")
        pairs = sorted(zip(scores.tolist(), ids, strict=True), reverse=True)
        yield query, [doc for _, doc in pairs]


def _measure(
    ranked: Mapping[str, Sequence[str]], qrels: Qrels, names: Iterable[str], relevant: int
) -> dict[str, dict[str, float]]:
    if not qrels:
        raise InputError("there are no judgements")
    if relevant < 1:
        raise InputError(f"the lowest relevant grade must be 1 or more, not {relevant}")
    library = _library()
    parsed = {name: _parse(library, name, relevant) for name in names}
    # trec_eval writes out of bounds for a query whose grades are all negative; its value is 0.
    grades = {
        query: dict(judged)
        for query, judged in qrels.items()
        if max(judged.values(), default=-1) >= 0
    }
    # The providers behind ir_measures break ties differently, so none is left to break.
    scores = {
        query: {doc: float(len(docs) - i) for i, doc in enumerate(docs)}
        for query, docs in ranked.items()
        if query in grades
    }
    found: dict[Any, dict[str, float]] = {kind: {} for kind in parsed.values()}
    for metric in library.iter_calc(list(found), grades, scores):
        found[metric.measure][metric.query_id] = float(metric.value)
    return {
        name: {query: found[kind].get(query, 0.0) for query in qrels}
        for name, kind in parsed.items()
    }


def _library() -> Any:  # noqa: ANN401  (ir_measures is untyped)
    try:
        return importlib.import_module("ir_measures")
    except ImportError as error:
        raise MissingExtra("evaluation", "eval") from error


def _parse(library: Any, name: str, relevant: int) -> Any:  # noqa: ANN401
    # ir_measures' own parser needs ast.Num, which Python 3.14 no longer has.
    match = _NAME.fullmatch(name)
    kind = library.measures.registry.get(match[1]) if match else None
    supported = False
    if match and kind is not None:
        params: dict[str, int] = {"rel": relevant} if "rel" in kind.SUPPORTED_PARAMS else {}
        if match[2]:
            params[kind.AT_PARAM] = int(match[2])
        kind = kind(**params)
        with suppress(AssertionError):
            # Of the measures that pytrec_eval lacks, RR@k alone is safe once ties are gone.
            supported = kind.NAME == "RR" or library.pytrec_eval.supports(kind)
    if not supported:
        raise InputError(
            f"{name!r} is not a measure of trec_eval",
            remedy=f"write NAME or NAME@k, as in {', '.join(MEASURES)}",
        )
    return kind


def _unjudged_share(ranked: Mapping[str, Sequence[str]], qrels: Qrels) -> float | None:
    shares = []
    for query, docs in ranked.items():
        shown = docs[:JUDGED_DEPTH]
        shares.append(sum(doc not in qrels[query] for doc in shown) / len(shown))
    return math.fsum(shares) / len(shares) if shares else None


def _scores(order: Sequence[str] | Mapping[str, float]) -> Mapping[str, float]:
    if isinstance(order, Mapping):
        return order
    scores = {item: -float(rank) for rank, item in enumerate(order)}
    if len(scores) < len(order):
        raise InputError("an order lists an id more than once")
    return scores


def _array(values: Mapping[str, float], keys: Sequence[str]) -> Floats:
    array = np.array([values[key] for key in keys], dtype=np.float64)
    if np.isnan(array).any():
        raise InputError(f"the value of {keys[int(np.isnan(array).argmax())]!r} is not a number")
    return array


def _mean(array: Floats) -> float:
    return math.fsum(array.tolist()) / len(array) if len(array) else math.nan


def _blocks(samples: int, n: int) -> Iterator[int]:
    """Row counts that add up to `samples`, so that a block of n columns stays small."""
    if samples < 1:
        raise InputError(f"resampling needs at least one sample, not {samples}")
    rows = max(1, _CELLS // n)
    for start in range(0, samples, rows):
        yield min(rows, samples - start)


def _bootstrap(array: Floats, samples: int, seed: int) -> Interval | None:
    """Percentile interval of the mean under resampling with replacement (Efron)."""
    n = len(array)
    if n < 2:
        return None
    rng = np.random.default_rng(seed)
    means = [array[rng.integers(0, n, (rows, n))].mean(axis=1) for rows in _blocks(samples, n)]
    low, high = np.quantile(np.concatenate(means), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high))


def _sign_flip(differences: Floats, samples: int, seed: int) -> float:
    """Two-sided Monte Carlo p-value of the paired randomisation test of a zero mean."""
    n = len(differences)
    if n < 2:
        return 1.0
    rng = np.random.default_rng(seed)
    total = float(differences.sum())
    # Sums that differ by rounding only are equally far from 0.
    bound = abs(total) - TIE * float(np.abs(differences).sum())
    hits = 0
    for rows in _blocks(samples, n):
        flipped = rng.integers(0, 2, (rows, n), dtype=np.int8) @ differences
        hits += int((np.abs(total - 2 * flipped) >= bound).sum())
    return (1 + hits) / (1 + samples)
