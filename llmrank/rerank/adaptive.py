"""The adaptive ranker: rounds of parallel blocks, chosen by what is still uncertain."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from llmrank.errors import SpecError
from llmrank.plan import Plan
from llmrank.rerank.blocks import check_by, ordered
from llmrank.rerank.posterior import Evidence, Posterior
from llmrank.types import Candidate, Ordering, Query

PRIOR_SLOPE, PRIOR_DEVIATION = 0.4, 1.15
"""Strength falls by 0.4 a unit of ln(first-stage rank), and each document deviates from that."""

SCALE = 1.25
"""Noise of an order in units of Gumbel noise: above 1, as a model repeats part of its errors."""

CURIOSITY = 0.3
"""How many deviations above its mean a document stands when blocks are filled."""


def adaptive(
    query: Query,
    candidates: Sequence[Candidate],
    *,
    k: int = 20,
    cover: int = 1,
    then: str = "half",
    m: int = 10,
    sure: float = 1.0,
    by: str = "text",
) -> Plan[Ordering]:
    """Posterior over strengths from Plackett-Luce evidence, gathered in rounds of parallel blocks.

    The first round shows every candidate `cover` times in blocks of at most k, each a cross-section
    of the first-stage order, so that the blocks can be compared. `then` are the blocks of each
    further round, such as 2+2, or 0 for none; `half` are half as many as in the round before it,
    rounded up, until they are ceil(n / k) - 1 in all. A block takes the k documents of highest
    mean + 0.3 deviations, the deviations as they will be after the blocks before it. Inside a block
    documents stand in their current order.
    It stops early when each of the m best is among the best m with a probability of at least `sure`
    (1 never stops). The prior of a strength falls with the logarithm of the first-stage rank; the
    scores are posterior means, so one answer that contradicts the first stage does not overrule it
    entirely. A block without a usable answer is no evidence; a document in no other has no score.
    For n <= k there is one call, whose order is taken as it is, without scores; else there are
    cover * ceil(n / k) calls in the first round, and those of `then`: with cover=1 and `half`
    2 * ceil(n / k) - 1 in all, about as many as a pass of a sliding window that moves by k / 2, in
    at most 1 + floor(log2(ceil(n / k))) rounds. Source: llmrank.
    """
    if k < 2 or cover < 1 or m < 1 or not 0 < sure <= 1:
        raise SpecError(
            f"adaptive needs k >= 2, cover >= 1, m >= 1 and 0 < sure <= 1, not {k, cover, m, sure}"
        )
    check_by("adaptive", by, k)
    count = len(candidates)
    schedule = _schedule(then, math.ceil(count / k))
    if count < 2:
        return Ordering(tuple(range(count)), (None,) * count)
    if count <= k:
        # Nothing is left to weigh against each other, and the prior alone would only blur it.
        (whole,) = yield from ordered(query, candidates, [range(count)], by)
        order = tuple(range(count)) if whole is None else whole.order
        return Ordering(order, (None,) * count)
    prior = -PRIOR_SLOPE * np.log(np.arange(1, count + 1))
    posterior = Posterior(prior, PRIOR_DEVIATION, SCALE)
    blocks = cross_sections(count, k, cover)
    seen: set[int] = set()
    for calls in (*schedule, 0):
        judged = yield from ordered(query, candidates, blocks, by)
        usable = [j for j in judged if j is not None]
        seen.update(item for j in usable for item in j.order)
        posterior.observe([Evidence(j.order, j.named) for j in usable])
        if not calls or _resolved(posterior, m, sure):
            break
        blocks = _next(posterior, calls, k)
    scores = (float(m) if i in seen else None for i, m in enumerate(posterior.mean))
    return Ordering(_ranked(posterior), tuple(scores))


def cross_sections(count: int, k: int, cover: int) -> list[list[int]]:
    """Blocks of at most k that hold every one of `count` ranks `cover` times, in order of rank.

    Of b blocks each gets one of every b consecutive ranks; which one it is changes from row to row,
    in a way of its own each time around, so that the same documents seldom meet twice.
    """
    number = math.ceil(count / k)
    found: list[list[int]] = []
    for layer in range(1, cover + 1):
        blocks: list[list[int]] = [[] for _ in range(number)]
        for rank in range(count):
            row, place = divmod(rank, number)
            blocks[(place + layer * row) % number].append(rank)
        found += blocks
    return found


def _next(posterior: Posterior, blocks: int, k: int) -> list[list[int]]:
    chosen: list[list[int]] = []
    ahead = posterior
    for place in range(blocks):
        if place:
            ahead = ahead.foreseen(chosen[-1])
        promise = ahead.mean + CURIOSITY * ahead.spread
        block = sorted(range(len(promise)), key=lambda i: (-promise[i], i))[:k]
        chosen.append(sorted(block, key=lambda i: (-posterior.mean[i], i)))
    return chosen


def _resolved(posterior: Posterior, m: int, sure: float) -> bool:
    if sure >= 1:
        return False
    return bool(np.sort(posterior.top(m))[::-1][:m].min() >= sure)


def _ranked(posterior: Posterior) -> tuple[int, ...]:
    return tuple(sorted(range(len(posterior.mean)), key=lambda i: (-posterior.mean[i], i)))


def _schedule(then: str, first: int) -> list[int]:
    """Blocks of each later round; `first` is how many show every candidate once."""
    if then == "half":
        return _halves(first)
    try:
        rounds = [int(part) if part.isascii() else -1 for part in then.split("+")]
    except ValueError:
        rounds = [-1]
    if min(rounds) < 0 or (0 in rounds and len(rounds) > 1):
        raise SpecError(f"adaptive: `then` is half, 0 or blocks a round such as 2+2, not {then!r}")
    return [calls for calls in rounds if calls]


def _halves(first: int) -> list[int]:
    """Half of the round before, rounded up, until they are `first` - 1 in all."""
    rounds: list[int] = []
    blocks, left = first, first - 1
    while left > 0:
        blocks = min(left, math.ceil(blocks / 2))
        left -= blocks
        rounds.append(blocks)
    return rounds
