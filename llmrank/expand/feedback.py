"""Augmentation by feedback: what the first documents found say about the query."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmrank.errors import SpecError
from llmrank.expand.base import (
    Expansion,
    FirstStage,
    NeedsIndex,
    Scored,
    View,
    check_counts,
    check_shares,
    check_weights,
    plain,
)
from llmrank.expand.weights import Weights, divided, largest, total
from llmrank.plan import Grade, Plan, Vectors, ask_all
from llmrank.types import Query

Floats = NDArray[np.float64]

_LENGTHS = range(2, 21)
_PLAIN_TERM = re.compile("[a-z0-9]+")
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
    check_counts(fb_docs=fb_docs, fb_terms=fb_terms)
    check_shares(original_query_weight=original_query_weight, max_df=max_df)
    found = _found(query, first, fb_docs)
    shares = (
        (score, divided(largest(_usable(first, name, max_df, filter_terms), fb_terms), 1))
        for name, score in found
    )
    model = divided(largest(total(shares), fb_terms), 1)
    if not model:
        return (yield from plain(query, first, note=_nothing(found)))
    own = divided(Counter(first.analyze(query.text)), 1)
    weights = total([(original_query_weight, own), (1 - original_query_weight, model)])
    return Expansion(query, (View(terms=weights),))


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
    check_counts(
        top_fb_docs=top_fb_docs,
        top_fb_terms=top_fb_terms,
        bottom_fb_docs=bottom_fb_docs,
        bottom_fb_terms=bottom_fb_terms,
    )
    check_shares(max_df=max_df)
    check_weights(alpha=alpha, beta=beta, gamma=gamma)
    depth = max(top_fb_docs, first.depth) if gamma else top_fb_docs
    found = _found(query, first, depth)
    top = _centroid(first, found[:top_fb_docs], top_fb_terms, max_df)
    if not top:
        return (yield from plain(query, first, note=_nothing(found)))
    last = found[::-1][:bottom_fb_docs] if gamma else []
    bottom = _centroid(first, last, bottom_fb_terms, max_df)
    own = divided(Counter(first.analyze(query.text)), 2)
    weights = total([(alpha, own), (beta, top), (-gamma, bottom)])
    kept = {term: weight for term, weight in weights.items() if weight > 0}
    if not kept:
        return (yield from plain(query, first, note="no term is left above 0"))
    return Expansion(query, (View(terms=kept),))


def vector_prf(query: Query, first: FirstStage, *, k: int = 3) -> Plan[Expansion]:
    """The mean of the query's vector and those of the first k documents that it finds.

    Li et al. 2021, arXiv 2108.11044 (Average). Asks for the query's vector alone.
    """
    check_counts(k=k)
    seen = yield from _look(query, first, k)
    if isinstance(seen, Expansion):
        return seen
    return _moved(query, np.vstack([seen.own, seen.passages]).mean(axis=0))


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
    check_counts(k=k)
    check_weights(alpha=alpha, beta=beta)
    seen = yield from _look(query, first, k)
    if isinstance(seen, Expansion):
        return seen
    return _moved(query, alpha * seen.own + beta * seen.passages.mean(axis=0))


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
    check_counts(depth=depth)
    if by not in _LOSSES:
        raise SpecError(f"by is one of {', '.join(_LOSSES)}, not {by!r}")
    if steps < 0 or not 0 <= rate < math.inf:
        raise SpecError("steps and rate are 0 (as published) or more")
    loss = _LOSSES[by]
    seen = yield from _look(query, first, depth)
    if isinstance(seen, Expansion):
        return seen
    answers = yield from ask_all([Grade(query, first.document(name)) for name in seen.names])
    kept = [place for place, answer in enumerate(answers) if answer.value is not None]
    wanted = np.array([log_odds(a.value.probabilities[0]) for a in answers if a.value is not None])
    vector, passages = seen.own.astype(np.float64), seen.passages[kept].astype(np.float64)
    scale = _scale(wanted, passages @ vector)
    if scale is None:
        note = f"{len(kept)} of {len(answers)} documents graded, none above another"
        return replace(seen.base, note=note)
    adam = _Adam(rate or loss.rate, len(vector))
    for _ in range(steps or loss.steps):
        slopes = loss.slope(scale * (passages @ vector), wanted)
        vector = vector - adam.step(scale * (slopes @ passages))
    return _moved(query, vector)


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


class _Loss(NamedTuple):
    """Its slope in every score, from the scores and those wanted; published steps and rate."""

    slope: Callable[[Floats, Floats], Floats]
    steps: int
    rate: float


_LOSSES: Mapping[str, _Loss] = {
    "grades": _Loss(_toward_grades, 100, 0.005),
    "order": _Loss(_toward_order, 20, 0.001),
}


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
    """The plain query, its vector, the documents that it finds and theirs."""

    base: Expansion
    own: Vectors
    names: list[str]
    passages: Vectors


def _look(query: Query, first: FirstStage, k: int) -> Plan[_Seen | Expansion]:
    """What the query finds by its vector; the plain query where it has none or finds nothing."""
    if not first.size:
        raise NeedsIndex
    base = yield from plain(query, first, note="nothing found")
    own = base.views[0].vector if base.views else None
    if own is None or not (found := first.search(base, k)):
        return base
    names = [name for name, _ in found]
    return _Seen(base, own[0], names, first.vectors(names))


def _moved(query: Query, vector: Floats | Vectors) -> Expansion:
    return Expansion(query, (View(vector=vector.astype(np.float32).reshape(1, -1)),))


def _found(query: Query, first: FirstStage, k: int) -> list[Scored]:
    """What the words of the query find."""
    return first.search(Expansion(query, (View(((query.text, 1.0),)),)), k)


def _nothing(found: Sequence[Scored]) -> str:
    return "no feedback term" if found else "nothing found"


def _centroid(first: FirstStage, found: Sequence[Scored], terms: int, max_df: float) -> Weights:
    """The mean of the documents' counts at length 1, cut to its largest and at length 1 itself."""
    parts = ((1 / len(found), divided(_usable(first, name, max_df), 2)) for name, _ in found)
    return divided(largest(total(parts), terms), 2)


def _usable(
    first: FirstStage, document: str, max_df: float, filter_terms: bool = False
) -> dict[str, int]:
    """The counts of the terms of a document that feedback may come from."""
    return {
        term: count
        for term, count in first.counts(document).items()
        if len(term) in _LENGTHS
        and (not filter_terms or _PLAIN_TERM.fullmatch(term))
        and first.frequency(term) <= max_df * first.size
    }
