"""Permutation self-consistency: the ranking nearest to those of many shuffles of the candidates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmrank.errors import SpecError
from llmrank.plan import Plan, together
from llmrank.rerank.aggregation import Order, borda, wins
from llmrank.rerank.heard import heard
from llmrank.rerank.order import by_score
from llmrank.types import Candidate, Ordering, Query

EXACT = 10
"""The most candidates for which the Kemeny ranking is found by looking at all subsets."""

RRF_OFFSET = 60


def psc(
    query: Query,
    candidates: Sequence[Candidate],
    *,
    rerank: Callable[[Query, Sequence[Candidate]], Plan[Ordering]],
    samples: int = 20,
    aggregate: str = "kemeny",
    seed: int = 0,
) -> Plan[Ordering]:
    """Run `rerank` on shuffles of the candidates side by side and fuse its rankings.

    The first of the `samples` is the first-stage order; a shuffle that is drawn again is not run
    again but weighs more. `aggregate` is kemeny (fewest disagreements with the rankings: exact for
    n <= 10, else improved from the Borda ranking until no move of one candidate helps; no scores),
    borda (mean place, scores from 1 to 0) or rrf (mean of 1 / (60 + rank)). At most `samples` times
    the calls of `rerank`, in its rounds.

    Where `rerank` settles the first places only, the candidates behind them count as tied (with
    rrf they get 0); those that no run puts among the first follow in first-stage order. A
    candidate that was in no usable answer of a run has no place in the ranking of that run, and
    one without a place in any keeps that of the first stage. Tang et al. 2023, arXiv 2310.07712,
    who fuse complete rankings.
    """
    if samples < 1:
        raise SpecError(f"psc needs samples >= 1, not {samples}")
    if aggregate not in ("kemeny", "borda", "rrf"):
        raise SpecError(f"psc: aggregate must be kemeny, borda or rrf, not {aggregate!r}")
    n = len(candidates)
    if n < 2:
        return Ordering(tuple(range(n)), (None,) * n)
    drawn = _shuffles(n, samples, Random(f"{seed}/{query.id}"))
    runs = yield from together([heard(rerank(query, [candidates[i] for i in s])) for s in drawn])
    orders: list[Order] = []
    for (shuffle, weight), (run, known) in zip(drawn.items(), runs, strict=True):
        orders += [_vote(candidates, shuffle, run, known)] * weight
    return _fused(orders, n, aggregate)


def _vote(
    candidates: Sequence[Candidate], shuffle: Sequence[int], run: Ordering, known: set[str]
) -> Order:
    """The order of a run on a shuffle, without the candidates that no answer of it says a word of;
    and how many of the first it settled."""
    order = [shuffle[place] for place in run.order]
    told = [candidates[i].document.id in known for i in order]
    return [i for i, usable in zip(order, told, strict=True) if usable], sum(told[: run.settled])


def _fused(orders: Sequence[Order], n: int, aggregate: str) -> Ordering:
    """One ordering from those of all runs."""
    beaten = wins(orders, n)
    compared = (beaten.sum(axis=0) + beaten.sum(axis=1)) > 0
    if aggregate == "kemeny":
        places = np.argsort(kemeny(orders, n))
        order = by_score([-float(p) if c else None for p, c in zip(places, compared, strict=True)])
        scores: tuple[float | None, ...] = (None,) * n
    else:
        found = borda(orders, n) if aggregate == "borda" else _rrf(orders, n)
        scores = tuple(float(s) if c else None for s, c in zip(found, compared, strict=True))
        order = by_score(scores)
    first = {i for ranking, named in orders if len(ranking) > 1 for i in ranking[:named]}
    ranked = max((place for place, i in enumerate(order, start=1) if i in first), default=0)
    return Ordering(order, scores, ranked=ranked)


def kemeny(orders: Sequence[Order], n: int) -> tuple[int, ...]:
    """A ranking of all items with few disagreements: pairs that an order places the other way.

    It has the fewest for n <= `EXACT`, the smaller items first among equally good rankings. For
    more it is one that no move of a single item improves, so it may miss a better ranking.
    """
    before = wins(orders, n).astype(np.int64)
    return _fewest(before.tolist(), n) if n <= EXACT else _improved(before, orders, n)


def _shuffles(n: int, samples: int, rng: Random) -> Counter[tuple[int, ...]]:
    drawn = Counter([tuple(range(n))])
    for _ in range(samples - 1):
        shuffle = list(range(n))
        rng.shuffle(shuffle)
        drawn[tuple(shuffle)] += 1
    return drawn


def _fewest(before: list[list[int]], n: int) -> tuple[int, ...]:
    """The best ranking of every subset from those of the smaller ones: 2**n * n**2 steps."""
    best: list[tuple[int, int]] = [(0, -1)]
    for subset in range(1, 2**n):
        members = [i for i in range(n) if subset >> i & 1]
        best.append(
            min((best[subset ^ 1 << i][0] + sum(before[j][i] for j in members), i) for i in members)
        )
    order, subset = [], 2**n - 1
    while subset:
        order.append(best[subset][1])
        subset ^= 1 << order[-1]
    return tuple(order)


def _improved(before: NDArray[Any], orders: Sequence[Order], n: int) -> tuple[int, ...]:
    """The Borda ranking, items moved to where they disagree least until none moves."""
    order = list(by_score([None if np.isnan(s) else s for s in borda(orders, n).tolist()]))
    moved = True
    while moved:
        moved = False
        for item in order:
            others = [i for i in order if i != item]
            # Cost of each place, less that of the first: who stands before the item says so or not.
            change = before[item, others] - before[others, item]
            cost = np.concatenate([[0], np.cumsum(change)])
            here = order.index(item)
            # Of equally good places the nearest: those who were not compared stay as they are.
            place = min(np.flatnonzero(cost == cost.min()).tolist(), key=lambda p: abs(p - here))
            if cost[place] < cost[here]:
                order = [*others[:place], item, *others[place:]]
                moved = True
    return tuple(order)


def _rrf(orders: Sequence[Order], n: int) -> NDArray[Any]:
    """Reciprocal rank fusion over the orders that an item is in, 0 where it is not among the named.

    Cormack et al. 2009.
    """
    total, ranked = np.zeros(n), np.zeros(n)
    for order, named in orders:
        total[list(order[:named])] += 1 / (RRF_OFFSET + np.arange(1, named + 1))
        ranked[list(order)] += 1
    return np.round(total / np.maximum(ranked, 1), 12)
