"""What methods would cost and reach, with a simulated judge in the model's place."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from statistics import fmean, variance
from typing import Any, NamedTuple

import numpy as np

import llmrank.trec as trec
from llmrank.api.runs import Progress
from llmrank.backends.oracle import grade_of, log_softmax
from llmrank.errors import CapabilityError, InputError
from llmrank.evaluate import Comparison, Estimate, compare, interval
from llmrank.plan import (
    Answer,
    Ask,
    Attend,
    Choice,
    Drive,
    Grade,
    Grades,
    Likelihood,
    LogProb,
    Order,
    Permutation,
    Pick,
    Plan,
)
from llmrank.rerank import Ranker
from llmrank.types import Candidate, Document, Ordering, Query, Status, Tally

SHARES = (0.70, 0.12, 0.12, 0.06)
"""Shares of the grades 0..3 in synthetic data, near those of BM25's top 100 in TREC DL 2019."""

PASSAGE_TOKENS, CALL_TOKENS = 120, 100
"""Tokens of a document shown, and of a call without its documents: instructions, query, reply."""

_DEPTH = 10
_GUMBEL_MEAN, _GUMBEL_DEVIATION = 0.5772156649015329, math.pi / math.sqrt(6)


@dataclass(frozen=True, slots=True)
class Case:
    """A query with its candidates in first-stage order and its grades; unjudged counts as 0."""

    query: Query
    candidates: tuple[Candidate, ...]
    grades: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Noise:
    """How a judge errs, in grade steps.

    The utility of a document is its grade plus noise of this `deviation`, of whose variance the
    share `fixed` belongs to query and document (Gaussian, the same in every call) and the rest is
    drawn anew for each call: `gumbel` makes orders Plackett-Luce draws, `gaussian` Thurstone's.
    The last place shown loses `bias` against the first. Where an answer is a probability, a
    difference of one `scale` in utility is one nat.
    """

    deviation: float = 0.0
    fixed: float = 0.5
    fresh: str = "gumbel"
    bias: float = 0.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        numbers = (self.deviation, self.bias, self.scale)
        if not (all(map(math.isfinite, numbers)) and self.deviation >= 0 and self.scale > 0):
            raise InputError("a judge needs noise >= 0, a scale above 0 and a finite bias")
        if not 0 <= self.fixed <= 1:
            raise InputError(f"the fixed share of the noise is from 0 to 1, not {self.fixed}")
        if self.fresh not in ("gumbel", "gaussian"):
            raise InputError(f"fresh noise is gumbel or gaussian, not {self.fresh!r}")


class Simulated:
    """A judge of the documents of some cases, which answers asks of plans directly.

    An answer depends on the seed and on the ask's kind, query, documents in order and sample
    alone, never on what was asked before.
    """

    def __init__(self, cases: Iterable[Case], noise: Noise, seed: int = 0) -> None:
        self._grades = {case.query.id: case.grades for case in cases}
        grades = (grade for judged in self._grades.values() for grade in judged.values())
        self._top = max(1, max(grades, default=1))
        self._noise, self._seed = noise, seed
        self._steady: dict[tuple[str, str], float] = {}

    def __call__(self, item: Ask[Any]) -> Answer[Any]:
        """The answer, always usable."""
        return Answer(status=Status.OK, value=self._value(item))

    def _value(self, item: Ask[Any]) -> object:
        scale = self._noise.scale
        if isinstance(item, Order | Pick | Attend):
            utilities = self._utilities(item, item.query, item.docs)
            if isinstance(item, Attend):
                return tuple(utilities)
            best = tuple(sorted(range(len(utilities)), key=lambda i: (-utilities[i], i)))
            if isinstance(item, Order):
                return Permutation(best)
            labels = item.by == "labels"
            likely = _softmax([u / scale for u in utilities]) if labels else None
            return Choice(best[: item.n], likely)
        if isinstance(item, Grade | Likelihood):
            (utility,) = self._utilities(item, item.query, (item.doc,))
            if isinstance(item, Grade):
                return Grades(_label_shares(utility, len(item.labels), self._top, scale), 1.0)
            tokens = max(1, len(item.query.text.split()))
            return LogProb(utility / scale - 10.0 * tokens, tokens)
        raise CapabilityError(f"a simulated judge cannot answer {type(item).__name__}")

    def _utilities(self, item: Ask[Any], query: Query, docs: Sequence[Document]) -> list[float]:
        noise = self._noise
        step = noise.bias / max(1, len(docs) - 1)
        known = [self._known(query.id, doc.id) for doc in docs]
        if not noise.deviation or noise.fixed == 1:
            return [utility - i * step for i, utility in enumerate(known)]
        ids = [doc.id for doc in docs]
        draw = _generator(self._seed, type(item).__name__, item.sample, query.id, *ids)
        if noise.fresh == "gumbel":
            fresh = (draw.gumbel(size=len(docs)) - _GUMBEL_MEAN) / _GUMBEL_DEVIATION
        else:
            fresh = draw.standard_normal(len(docs))
        size = noise.deviation * math.sqrt(1 - noise.fixed)
        return [u - i * step + size * f for i, (u, f) in enumerate(zip(known, fresh, strict=True))]

    def _known(self, query_id: str, doc_id: str) -> float:
        """Grade and fixed noise of a document: what the judge thinks of it in every call."""
        found = self._steady.get((query_id, doc_id))
        if found is None:
            error = float(_generator(self._seed, query_id, doc_id).standard_normal())
            size = self._noise.deviation * math.sqrt(self._noise.fixed)
            grade = max(0, grade_of(self._grades.get(query_id, {}), doc_id))
            found = self._steady[query_id, doc_id] = grade + size * error
        return found


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a method reaches and costs: means over queries and seeds.

    `ndcg` is nDCG@10, or that of the depth asked for, with a 95 % interval over queries. `gain`
    compares it with the first stage query by query (None for the first stage itself), `error` is
    its standard error over seeds, the queries taken as given (None for one seed), and `values` are
    those of the queries. `calls`, `rounds`, documents `shown` and `tokens` are those of one query.
    """

    method: str
    ndcg: Estimate
    gain: Comparison | None
    error: float | None
    calls: float
    rounds: float
    shown: float
    tokens: float
    values: Mapping[str, float]


def simulate(
    methods: Sequence[Ranker],
    cases: Sequence[Case],
    noise: Noise,
    *,
    seeds: int = 20,
    depth: int = _DEPTH,
    passage_tokens: int = PASSAGE_TOKENS,
    progress: Progress | None = None,
) -> list[Prediction]:
    """Drive every method over every case with `seeds` judges: the first stage, then the methods.

    Every method meets the same judges. Quality is nDCG@`depth`. Tokens are `passage_tokens` for
    each document shown and `CALL_TOKENS` for each call.
    """
    if not cases or seeds < 1 or depth < 1:
        raise InputError("a simulation needs at least one query, one seed and a depth of 1")
    judges = [Simulated(cases, noise, seed) for seed in range(seeds)]
    first = {c.query.id: _ndcg(c, range(len(c.candidates)), depth) for c in cases}
    predictions = [Prediction("first stage", interval(first), None, 0, 0, 0, 0, 0, first)]
    done, tally = 0, Tally()
    for method in methods:
        trials: dict[str, list[_Trial]] = {}
        for case in cases:
            trials[case.query.id] = found = [_try(method, case, judge, depth) for judge in judges]
            done += len(found)
            tally += Tally({Status.OK: sum(trial.calls for trial in found)})
            if progress is not None:
                progress(done, tally)
        predictions.append(_predicted(str(method), trials, first, passage_tokens))
    return predictions


def judged_cases(
    run: str | Path, qrels: str | Path, *, n: int = 100, limit: int | None = None
) -> list[Case]:
    """The first n candidates of each judged query of a run, at most `limit` queries."""
    judgements = trec.read_qrels(qrels)
    cases: list[Case] = []
    for query_id, hits in trec.read_run(run, n):
        if query_id in judgements and (limit is None or len(cases) < limit):
            found = tuple(Candidate(Document(doc, ""), score) for doc, score in hits)
            cases.append(Case(Query(query_id, ""), found, judgements[query_id]))
    if not cases:
        raise InputError("no query of the run is judged", path=qrels)
    return cases


def synthetic_cases(
    queries: int = 50, n: int = 100, *, first_stage: float = 0.5, seed: int = 0
) -> list[Case]:
    """Queries with n candidates whose first-stage order has about the wanted nDCG@10.

    Grades are independent draws with `SHARES`, except that one document of each query is relevant.
    The first-stage score mixes grade and Gaussian noise, in the same proportion everywhere.
    Raises InputError where even an order without any knowledge of the grades is better.
    """
    if queries < 1 or n < 1:
        raise InputError("synthetic data needs at least one query and one candidate")
    rng = np.random.default_rng(seed)
    grades = rng.choice(len(SHARES), size=(queries, n), p=SHARES)
    grades[:, 0] = np.maximum(grades[:, 0], 1)
    noise = rng.standard_normal((queries, n))

    def scored(angle: float) -> np.ndarray[Any, np.dtype[np.float64]]:
        return math.cos(angle) * grades + math.sin(angle) * noise

    def reached(angle: float) -> float:
        best = np.argsort(-scored(angle), axis=1, kind="stable")[:, :_DEPTH]
        shown = np.take_along_axis(grades, best, axis=1)
        return fmean(map(ndcg, shown.tolist(), grades.tolist()))

    if not (lowest := reached(math.pi / 2)) <= first_stage <= 1:
        raise InputError(
            f"the first stage's nDCG@10 is from {lowest:.2f}, which a random order has, to 1 "
            f"here, not {first_stage}"
        )
    scores = scored(falling(reached, first_stage, 0.0, math.pi / 2))
    return [_synthetic(f"q{i}", grades[i], scores[i]) for i in range(queries)]


def falling(
    function: Callable[[float], float], wanted: float, low: float, high: float, steps: int = 24
) -> float:
    """Where between low and high a falling function takes a value, by bisection."""
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (middle, high) if function(middle) > wanted else (low, middle)
    return (low + high) / 2


def ndcg(ranked: Sequence[int], judged: Iterable[int], depth: int = _DEPTH) -> float:
    """nDCG@depth as trec_eval has it, of the grades in rank order and those of all judged."""
    best = _dcg(sorted(judged, reverse=True)[:depth])
    return _dcg(ranked[:depth]) / best if best else 0.0


class _Trial(NamedTuple):
    """One query reranked once."""

    ndcg: float
    calls: int
    rounds: int
    shown: int


def _try(method: Ranker, case: Case, judge: Simulated, depth: int) -> _Trial:
    plan: Plan[Ordering] = method.plan(case.query, case.candidates)
    running = Drive(plan)
    calls = shown = 0
    tickets = running.start()
    while tickets:
        answered = [(ticket, judge(ticket.ask)) for ticket in tickets]
        calls += len(tickets)
        shown += sum(len(getattr(ticket.ask, "docs", "1")) for ticket in tickets)
        tickets = [new for ticket, answer in answered for new in running.answer(ticket, answer)]
    return _Trial(_ndcg(case, running.result.order, depth), calls, running.rounds, shown)


def _predicted(
    method: str, trials: Mapping[str, list[_Trial]], first: Mapping[str, float], tokens: int
) -> Prediction:
    values = {query: fmean(trial.ndcg for trial in found) for query, found in trials.items()}
    every = [trial for found in trials.values() for trial in found]
    calls, shown = fmean(t.calls for t in every), fmean(t.shown for t in every)
    return Prediction(
        method,
        ndcg=interval(values),
        gain=compare(values, first),
        error=_error([[trial.ndcg for trial in found] for found in trials.values()]),
        calls=calls,
        rounds=fmean(t.rounds for t in every),
        shown=shown,
        tokens=shown * tokens + calls * CALL_TOKENS,
        values=values,
    )


def _error(values: Sequence[Sequence[float]]) -> float | None:
    """Standard error of the mean over queries (rows) and independent seeds."""
    if len(values[0]) < 2:
        return None
    return math.sqrt(fmean(variance(row) / len(row) for row in values) / len(values))


def _synthetic(name: str, grades: Iterable[int], scores: Iterable[float]) -> Case:
    """Documents named by their place, so that a name says nothing of the grade."""
    rows = sorted(zip(scores, grades, strict=True), key=lambda row: -row[0])
    candidates = tuple(Candidate(Document(f"d{i}", ""), float(s)) for i, (s, _) in enumerate(rows))
    return Case(Query(name, ""), candidates, {f"d{i}": int(g) for i, (_, g) in enumerate(rows)})


def _ndcg(case: Case, order: Sequence[int], depth: int = _DEPTH) -> float:
    found = [case.grades.get(case.candidates[i].document.id, 0) for i in order[:depth]]
    return ndcg(found, case.grades.values(), depth)


def _dcg(grades: Iterable[int]) -> float:
    return sum(max(0, grade) / math.log2(rank) for rank, grade in enumerate(grades, 2))


def _label_shares(utility: float, count: int, top: int, scale: float) -> tuple[float, ...]:
    """Probabilities of labels, best first, spread evenly from the highest grade to 0.

    Of two neighbours the better is the likelier by one nat for each `scale` that the utility lies
    above the middle between them (the partial credit model, Masters 1982).
    """
    gap = top / max(1, count - 1)
    logits = [0.0]
    for place in range(1, count):
        middle = top - (place - 0.5) * gap
        logits.append(logits[-1] - (utility - middle) / scale)
    return _softmax(logits)


def _softmax(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(map(math.exp, log_softmax(values)))


def _generator(*key: object) -> np.random.Generator:
    """A generator seeded by what it is for: the fastest that numpy makes from a seed."""
    text = "\n".join(map(str, key)).encode("utf-8", "surrogatepass")
    seed = int.from_bytes(blake2b(text, digest_size=8).digest(), "little")
    return np.random.Generator(np.random.PCG64(seed))
