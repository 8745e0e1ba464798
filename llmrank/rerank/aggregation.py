"""Scores of all items from the orders of blocks of them.

An order comes with the number of its first places that were named: an item named beats every item
behind it, those not named were not compared with one another. Every function takes such orders and
the number n of items and returns n scores, higher ones better; NaN stands where no order compares
an item with another. The order of the blocks matters to `elo` alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Order = tuple[Sequence[int], int]
"""Items of a block, best first, and how many of them were named."""

Scores = NDArray[np.float64]
_DIGITS = 9


def wins(orders: Sequence[Order], n: int) -> Scores:
    """How often each item (row) was placed before each other one (column)."""
    found = np.zeros((n, n))
    for order, named in orders:
        items = np.array(order, dtype=np.intp)
        for place in range(min(named, len(items))):
            found[items[place], items[place + 1 :]] += 1
    return found


def win_rate(orders: Sequence[Order], n: int) -> Scores:
    """Share of an item's comparisons that it won."""
    beaten = wins(orders, n)
    won, lost = beaten.sum(axis=1), beaten.sum(axis=0)
    return _known(won / np.maximum(won + lost, 1), beaten)


def pagerank(orders: Sequence[Order], n: int, damping: float = 0.85) -> Scores:
    """PageRank where every item links to those that beat it, as often as they did.

    Who never lost links to all items alike. Page et al. 1999.
    """
    beaten = wins(orders, n)
    share = beaten / np.maximum(beaten.sum(axis=0), 1)
    # What the unbeaten give to all alike only scales the solution.
    rank, change = np.ones(n), 1.0
    while change > 1e-12:
        # Sums of products: a matrix product of this size would wake threads that take far longer.
        following = 1 + damping * (share * rank).sum(axis=1)
        change = np.abs(following - rank).max(initial=0.0)
        rank = following
    return _known(rank / max(rank.sum(), 1.0), beaten)


def elo(orders: Sequence[Order], n: int, gain: float = 32.0) -> Scores:
    """Elo rating from 1500 up or down, with `gain` points for each comparison.

    The blocks count in their order; all comparisons in a block are rated by what the items had
    before it, so no order within a block matters. Elo 1978.
    """
    rating = np.full(n, 1500.0)
    for order, named in orders:
        items = np.array(order, dtype=np.intp)
        place = np.minimum(np.arange(len(items)), named)
        won = (place[:, None] < place).astype(float)
        apart = rating[items][:, None] - rating[items]
        surprise = (won + won.T) * (won - 1 / (1 + 10 ** (-apart / 400)))
        rating[items] += gain * surprise.sum(axis=1)
    return _known(rating, wins(orders, n))


def bradley_terry(orders: Sequence[Order], n: int) -> Scores:
    """Log-strengths under the Bradley-Terry model, at the maximum of the posterior.

    The prior is half a win and half a loss of every item against one of strength 0, which turns out
    the average: without it an item that never loses has no finite strength. Found by Newton steps.
    Bradley and Terry 1952.
    """
    beaten = wins(orders, n)
    played = beaten + beaten.T
    strength = np.zeros(n)
    for _ in range(100 + 10 * n):
        chance = _sigmoid(strength[:, None] - strength)
        own = _sigmoid(strength)
        gradient = beaten.sum(axis=1) - (played * chance).sum(axis=1) + 0.5 - own
        weight = played * chance * (1 - chance)
        curvature = np.diag(weight.sum(axis=1) + own * (1 - own)) - weight
        step = np.linalg.solve(curvature, gradient)
        # Steps that change no difference of strengths by more than 1 always lead upwards.
        step /= max(1.0, 2 * np.abs(step).max(initial=0.0))
        strength += step
        # The error after a short step is about its square.
        if np.abs(step).max(initial=0.0) < 1e-8:
            break
    return _known(strength, beaten)


def rank_centrality(orders: Sequence[Order], n: int) -> Scores:
    """Stationary distribution of a walk from each item to those that beat it.

    A step to another item has the chance that it beats this one, over the largest number of items
    that any was compared with. As in `bradley_terry` every item has half a win and half a loss
    against an average one, which the walk can therefore always reach and leave. Scores are relative
    to the mean of all items. Negahban et al. 2012, arXiv 1209.1688.
    """
    beaten = wins(orders, n)
    played = beaten + beaten.T
    rate = np.full((n + 1, n + 1), 0.5)
    rate[:n, :n] = beaten.T / np.maximum(played, 1)
    np.fill_diagonal(rate, 0.0)
    # In the balance of flows the common denominator cancels.
    balance = rate.T - np.diag(rate.sum(axis=1))
    balance[n] = 1.0
    flow = np.linalg.solve(balance, np.eye(n + 1)[n])[:n]
    return _known(flow / np.mean(flow) if n else flow, beaten)


def borda(orders: Sequence[Order], n: int) -> Scores:
    """Mean place in the blocks, 1 for the first and 0 for the last; the unnamed share theirs."""
    total, blocks = np.zeros(n), np.zeros(n)
    for order, named in orders:
        last = len(order) - 1
        if not named or not last:
            continue
        items = np.array(order, dtype=np.intp)
        place = np.arange(len(order), dtype=float)
        place[named:] = (named + last) / 2
        total[items] += 1 - place / last
        blocks[items] += 1
    return _known(total / np.maximum(blocks, 1), wins(orders, n))


AGGREGATORS: Mapping[str, Callable[[Sequence[Order], int], Scores]] = {
    "win_rate": win_rate,
    "pagerank": pagerank,
    "elo": elo,
    "bradley_terry": bradley_terry,
    "rank_centrality": rank_centrality,
    "borda": borda,
}


def _known(scores: Scores, beaten: Scores) -> Scores:
    """Scores with equal ones made equal to the last digit, and NaN where nothing is known."""
    compared = (beaten.sum(axis=0) + beaten.sum(axis=1)) > 0
    return np.where(compared, np.round(scores, _DIGITS), np.nan)


def _sigmoid(values: Scores) -> Scores:
    return 0.5 * (1 + np.tanh(values / 2))
