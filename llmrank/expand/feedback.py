"""Augmentation by feedback: what the first documents found say about the query."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmrank.errors import SpecError
from llmrank.expand.base import Expansion, FirstStage, Scored, View, plain, vectors
from llmrank.plan import Grade, Plan, Vectors, ask_all
from llmrank.types import Query

Weights = Mapping[str, float]
Floats = NDArray[np.float64]

_LENGTHS = range(2, 21)
_LEAST = 1e-6  # the probability of a label is taken to be at least this far from 0 and 1
_BETAS = (0.9, 0.999)
_EPSILON = 1e-8


def rm3(
    query: Query,
    first: FirstStage,
    *,
    fb_docs: int = 10,
    fb_terms: int = 10,
    original_query_weight: float = 0.5,
    max_df: float = 0.1,
    filter_terms: bool = True,
) -> Plan[Expansion]:
    """RM3 on BM25: the query's terms mixed with those of the first documents that it finds.

        weight(t) = original_query_weight * q(t) + (1 - original_query_weight) * f(t)
        f(t) ~ sum over the first `fb_docs` documents d of  score(d) * tf(t, d) / sum of tf(., d)

    q is the share of every term in the analysed query, f is cut to its `fb_terms` largest weights
    and divided by their sum. All as Anserini does it: a term counts in a document if it has 2 to 20
    characters, of a-z and 0-9 alone where `filter_terms`, and is in at most the share `max_df` of
    all documents; a document keeps its `fb_terms` most frequent terms before they are divided by
    their sum; its weight is its BM25 score. Where equal weights compete for the last places, the
    alphabet decides, and in Anserini the order of a hash table: any such choice moves nDCG@10 on
    SciFact by up to .005. Asks no model. Lavrenko and Croft 2001; Abdul-Jaleel et al. 2004;
    Anserini's Rm3Reranker.
    """
    _check_counts(fb_docs=fb_docs, fb_terms=fb_terms)
    _check_share(original_query_weight=original_query_weight, max_df=max_df)
    found = first.search(Expansion(query, (View(((query.text, 1.0),)),)), fb_docs)
    model = dict[str, float]()
    for document, score in found:
        usual = _usable(first, document, max_df, filter_terms=filter_terms)
        for term, share in _divided(_largest(usual, fb_terms), 1).items():
            model[term] = model.get(term, 0.0) + share * score
    model = _divided(_largest(model, fb_terms), 1)
    if not model:
        return (yield from plain(query, first, note=_nothing(found)))
    own = _divided(_counted(first.analyze(query.text)), 1)
    return _weighted(query, _sum((original_query_weight, own), (1 - original_query_weight, model)))


def rocchio(
    query: Query,
    first: FirstStage,
    *,
    top_fb_docs: int = 10,
    top_fb_terms: int = 10,
    alpha: float = 1.0,
    beta: float = 0.75,
    gamma: float = 0.0,
    bottom_fb_docs: int = 10,
    bottom_fb_terms: int = 10,
    max_df: float = 0.1,
) -> Plan[Expansion]:
    """Rocchio on BM25: towards the first documents found and away from the last.

        weight(t) = alpha * q(t) + beta * top(t) - gamma * bottom(t),  kept where above 0

    q is the analysed query's term counts at length 1 (L2). `top` is the mean of the term counts of
    the first `top_fb_docs` documents, each at length 1, cut to its `top_fb_terms` largest and
    brought to length 1 again; `bottom` the same of the last of the documents that are wanted, where
    gamma is above 0. All as Anserini does it: a term counts in a document if it has 2 to 20
    characters and is in at most the share `max_df` of all documents. Of equal weights the first in
    the alphabet are kept (see `rm3`). Asks no model. Rocchio 1971; Anserini's RocchioReranker.
    """
    _check_counts(
        top_fb_docs=top_fb_docs,
        top_fb_terms=top_fb_terms,
        bottom_fb_docs=bottom_fb_docs,
        bottom_fb_terms=bottom_fb_terms,
    )
    _check_share(max_df=max_df)
    _check_weights(alpha=alpha, beta=beta, gamma=gamma)
    depth = max(top_fb_docs, first.depth) if gamma else top_fb_docs
    found = first.search(Expansion(query, (View(((query.text, 1.0),)),)), depth)
    top = _centroid(first, found[:top_fb_docs], top_fb_terms, max_df)
    if not top:
        return (yield from plain(query, first, note=_nothing(found)))
    last = found[::-1][:bottom_fb_docs] if gamma else []
    bottom = _centroid(first, last, bottom_fb_terms, max_df)
    own = _divided(_counted(first.analyze(query.text)), 2)
    weights = _sum((alpha, own), (beta, top), (-gamma, bottom))
    kept = {term: weight for term, weight in weights.items() if weight > 0}
    if not kept:
        return (yield from plain(query, first, note="no term is left above 0"))
    return _weighted(query, kept)


def vector_prf(query: Query, first: FirstStage, *, k: int = 3) -> Plan[Expansion]:
    """The mean of the query's vector and those of the first k documents that it finds.

    Li et al. 2021, arXiv 2108.11044 (Average). Asks for the query's vector alone.
    """
    _check_counts(k=k)
    seen = yield from _look(query, first, k)
    if seen.own is None or not seen.found:
        return _unmoved(query, seen)
    total = seen.own[0] + seen.passages.sum(axis=0)
    return _moved(query, total / (1 + len(seen.found)))


def vector_rocchio(
    query: Query,
    first: FirstStage,
    *,
    k: int = 5,
    alpha: float = 0.4,
    beta: float = 0.6,
) -> Plan[Expansion]:
    """alpha * the query's vector + beta * the mean of those of the first k documents found.

    Li et al. 2021, arXiv 2108.11044 (Rocchio). Asks for the query's vector alone.
    """
    _check_counts(k=k)
    _check_weights(alpha=alpha, beta=beta)
    seen = yield from _look(query, first, k)
    if seen.own is None or not seen.found:
        return _unmoved(query, seen)
    return _moved(query, alpha * seen.own[0] + beta * seen.passages.mean(axis=0))


def rerank_feedback(
    query: Query,
    first: FirstStage,
    *,
    depth: int = 100,
    by: str = "grades",
    steps: int = 0,
    rate: float = 0.0,
) -> Plan[Expansion]:
    """A query vector that gives the first documents the grades, or the order, of a model.

    Each of the first `depth` documents is graded yes or no; its score t is the log of
    p(yes) / p(no), and that of the vector q is s = c * q.d, where c is half the range of the t
    over that of the q.d at the start. Adam moves q, the documents' vectors d staying as they are,
    to lessen

        grades:  KL(softmax(t) || softmax(s)), 100 steps of rate .005 (ReFIT)
        order:   the mean over all pairs that the model puts in the order i, j of
                 log(1 + exp(s_j - s_i)) / (rank_i + rank_j), 20 steps of rate .001 (FIRST)

    with q as it is then searched. `steps` and `rate` are these where they are 0. A document without
    an answer is left out; with fewer than two grades, or grades all alike, the vector stays. Reddy
    et al. 2023, arXiv 2305.11744; Reddy et al. 2024, arXiv 2406.15657.
    """
    _check_counts(depth=depth)
    if by not in _PUBLISHED:
        raise SpecError(f"by is one of {', '.join(_PUBLISHED)}, not {by!r}")
    if steps < 0 or not 0 <= rate < math.inf:
        raise SpecError("steps and rate are 0 (as published) or more")
    usual_steps, usual_rate = _PUBLISHED[by]
    seen = yield from _look(query, first, depth)
    if seen.own is None or not seen.found:
        return _unmoved(query, seen)
    documents = [first.document(name) for name, _ in seen.found]
    answers = yield from ask_all([Grade(query, document) for document in documents])
    kept = [place for place, answer in enumerate(answers) if answer.value is not None]
    wanted = np.array([log_odds(a.value.probabilities[0]) for a in answers if a.value is not None])
    start, passages = seen.own[0].astype(np.float64), seen.passages[kept].astype(np.float64)
    scale = _scale(wanted, passages @ start)
    if scale is None:
        note = f"{len(kept)} of {len(answers)} documents graded, none above another"
        return Expansion(query, (View(vector=seen.own),), expanded=False, note=note)
    gradient = _toward_grades if by == "grades" else _toward_order
    vector = start
    adam = _Adam(rate or usual_rate, len(start))
    for _ in range(steps or usual_steps):
        slopes = gradient(scale * (passages @ vector), wanted)
        vector = vector - adam.step(scale * (slopes @ passages))
    return _moved(query, vector)


_PUBLISHED: Mapping[str, tuple[int, float]] = {"grades": (100, 0.005), "order": (20, 0.001)}
"""Steps and learning rate."""


def log_odds(probability: float) -> float:
    """The log of p / (1 - p), finite for every probability."""
    p = min(max(probability, _LEAST), 1 - _LEAST)
    return math.log(p) - math.log1p(-p)


def _toward_grades(scores: Floats, wanted: Floats) -> Floats:
    """The slope of KL(softmax(wanted) || softmax(scores)) in every score."""
    return _softmax(scores) - _softmax(wanted)


def _toward_order(scores: Floats, wanted: Floats) -> Floats:
    """The slope of RankNet, weighted by 1 / (rank_i + rank_j), in every score."""
    ranks = np.empty(len(wanted))
    ranks[np.argsort(-wanted, kind="stable")] = np.arange(1, len(wanted) + 1)
    above = wanted[:, None] > wanted[None, :]
    weights = above / (ranks[:, None] + ranks[None, :])
    gaps = scores[:, None] - scores[None, :]
    # The derivative of log(1 + exp(-gap)), in the form that cannot overflow.
    pulls = weights * 0.5 * (1 - np.tanh(gaps / 2)) / above.sum()
    slopes: Floats = pulls.sum(axis=0) - pulls.sum(axis=1)
    return slopes


def _softmax(scores: Floats) -> Floats:
    shares = np.exp(scores - scores.max())
    total: Floats = shares / shares.sum()
    return total


def _scale(wanted: Floats, scores: Floats) -> float | None:
    """Half of how much wider the one range is than the other; None where one has none."""
    if len(wanted) < 2 or not np.ptp(wanted) or not np.ptp(scores):
        return None
    return float(np.ptp(wanted) / np.ptp(scores)) / 2


class _Adam:
    """Adam's steps (Kingma and Ba 2015, arXiv 1412.6980) with the usual betas and epsilon."""

    def __init__(self, rate: float, size: int) -> None:
        self._rate, self._count = rate, 0
        self._mean, self._square = np.zeros(size), np.zeros(size)

    def step(self, gradient: Floats) -> Floats:
        """What to take off for this gradient."""
        self._count += 1
        first, second = _BETAS
        self._mean = first * self._mean + (1 - first) * gradient
        self._square = second * self._square + (1 - second) * gradient**2
        mean = self._mean / (1 - first**self._count)
        square = self._square / (1 - second**self._count)
        taken: Floats = self._rate * mean / (np.sqrt(square) + _EPSILON)
        return taken


class _Seen(NamedTuple):
    """The query's vector, shape (1, dimensions), and what it finds, with those vectors."""

    own: Vectors | None
    found: list[Scored]
    passages: Vectors


def _look(query: Query, first: FirstStage, k: int) -> Plan[_Seen]:
    own = yield from vectors([query.text], "query")
    if own is None:
        return _Seen(None, [], np.zeros((0, 0), dtype=np.float32))
    found = first.search(Expansion(query, (View(vector=own),)), k)
    return _Seen(own, found, first.vectors([name for name, _ in found]))


def _moved(query: Query, vector: Floats | Vectors) -> Expansion:
    return Expansion(query, (View(vector=vector.astype(np.float32).reshape(1, -1)),))


def _unmoved(query: Query, seen: _Seen) -> Expansion:
    if seen.own is None:
        return Expansion(query, (), expanded=False, note="the query could not be embedded")
    return Expansion(query, (View(vector=seen.own),), expanded=False, note="nothing found")


def _weighted(query: Query, weights: Weights) -> Expansion:
    return Expansion(query, (View(terms=weights),))


def _nothing(found: Sequence[Scored]) -> str:
    return "no feedback term" if found else "nothing found"


def _centroid(first: FirstStage, found: Sequence[Scored], terms: int, max_df: float) -> Weights:
    """The mean of the documents' counts at length 1, cut to its largest and at length 1 itself."""
    total = dict[str, float]()
    for document, _ in found:
        for term, weight in _divided(_usable(first, document, max_df), 2).items():
            total[term] = total.get(term, 0.0) + weight / len(found)
    return _divided(_largest(total, terms), 2)


def _usable(
    first: FirstStage, document: str, max_df: float, *, filter_terms: bool = False
) -> dict[str, float]:
    """The counts of the terms of a document that feedback may come from."""
    return {
        term: float(count)
        for term, count in first.counts(document).items()
        if len(term) in _LENGTHS
        and (not filter_terms or (term.isascii() and term.isalnum() and term == term.lower()))
        and first.frequency(term) <= max_df * first.size
    }


def _counted(terms: Sequence[str]) -> dict[str, float]:
    counts = dict[str, float]()
    for term in terms:
        counts[term] = counts.get(term, 0.0) + 1
    return counts


def _largest(weights: Weights, n: int) -> dict[str, float]:
    """The n largest weights, of equal ones those first in the alphabet."""
    return dict(sorted(weights.items(), key=lambda item: (-item[1], item[0]))[:n])


def _divided(weights: Weights, norm: int) -> dict[str, float]:
    """Weights above 0 at length 1: their sum (norm 1), or the root of that of their squares."""
    length = math.fsum(weight**norm for weight in weights.values()) ** (1 / norm)
    return {term: weight / length for term, weight in weights.items()}


def _sum(*parts: tuple[float, Weights]) -> dict[str, float]:
    total = dict[str, float]()
    for factor, weights in parts:
        for term, weight in weights.items():
            total[term] = total.get(term, 0.0) + factor * weight
    return total


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise SpecError(f"{name} must be at least 1")


def _check_share(**shares: float) -> None:
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise SpecError(f"{name} must be between 0 and 1")


def _check_weights(**weights: float) -> None:
    for name, weight in weights.items():
        if not 0 <= weight < math.inf:
            raise SpecError(f"{name} must be 0 or more")
