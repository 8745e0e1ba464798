"""Ranking by a graph of what is known to be better than what."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import ceil

import numpy as np
from numpy.typing import NDArray

from llmrank.errors import SpecError
from llmrank.plan import Plan
from llmrank.rerank.aggregation import wins
from llmrank.rerank.blocks import Judged, check_by, ordered
from llmrank.rerank.order import by_score
from llmrank.types import Candidate, Ordering, Query

PATIENCE = 2
"""A document that was shown in so many calls that taught nothing is shown in no further one."""


def blitz(
    query: Query,
    candidates: Sequence[Candidate],
    *,
    k: int = 20,
    m: int = 10,
    by: str = "text",
) -> Plan[Ordering]:
    """Infer from every answer all that follows, and ask only about what is still open.

    An answer makes each document better than the next, and so better than all that those after it
    are known to beat. Documents that beat one another in a circle are tied. A document is resolved
    when it is better than, worse than or tied with every other one. Each call shows up to `k`
    documents that are not resolved, no two of them tied, until the `m` documents with the fewest
    better ones are all resolved. Those with the fewest better ones are shown first, of them those
    with the fewest worse ones: of two that nothing beats, the one that has won less. The score is
    the number of documents known to be worse less that of those known to be better; the tied stand
    in the order of their wins against one another in the answers themselves.

    While k or more documents have no better one, as many whole blocks of them as there are go out
    in one round, dealt in turn over their order so that the blocks are alike (the authors cut
    consecutive ones); other rounds are of one call. The two shown first have equally many better
    ones, so they are not compared yet and every complete answer tells something new.
    There are never more than min(m, n) * ceil((n - 1) / (k - 1)) calls (1 for n <= k), which is
    enough for answers without a contradiction: so many settle who comes first, second, ... Of 100
    documents with k = 20 a perfect judge needs 6.4 calls in 2.4 rounds on average for the first
    ten. Of an answer that names a part only, the named ones come before the rest. A call that
    tells nothing new, having failed for example, sends its documents behind others with equally
    many better ones, and after a second such call they are left as they are; a document of which
    nothing is known keeps its place. BlitzRank, arXiv 2602.05448.
    """
    if k < 2 or m < 1:
        raise SpecError(f"blitz needs k >= 2 and m >= 1, not {k, m}")
    check_by("blitz", by, k)
    count = len(candidates)
    reach = np.eye(count, dtype=np.bool_)
    barren = [0] * count
    answers: list[Judged] = []
    left = 1 if count <= k else min(m, count) * ceil((count - 1) / (k - 1))
    while blocks := _open(reach, barren, k, m)[:left]:
        left -= len(blocks)
        judged = yield from ordered(query, candidates, blocks, by)
        answers += [answer for answer in judged if answer is not None]
        for block, answer in zip(blocks, judged, strict=True):
            if answer is None or not _learn(reach, answer):
                for i in block:
                    barren[i] += 1
    worse, better, won = reach.sum(axis=1), reach.sum(axis=0), wins(answers, count)
    # Direct wins decide among the tied: a part of one, as the differences of the others are whole.
    share = np.where(reach & reach.T, won - won.T, 0).sum(axis=1) / (2 * won.sum() + 1)
    known = worse + better > 2
    scores = [
        float(score) if seen else None
        for score, seen in zip((worse - better + share).tolist(), known.tolist(), strict=True)
    ]
    return Ordering(by_score(scores), tuple(scores))


def _open(
    reach: NDArray[np.bool_], barren: Sequence[int], k: int, m: int
) -> Sequence[Sequence[int]]:
    """The blocks to show next; none when the top is resolved or nothing can be learnt."""
    tied, compared = reach & reach.T, reach | reach.T
    resolved = compared.sum(axis=1) == len(barren)
    worse, better = reach.sum(axis=1), reach.sum(axis=0) - tied.sum(axis=0)
    ranked = sorted(range(len(barren)), key=lambda i: (better[i], barren[i], worse[i], i))
    if resolved[ranked[:m]].all():
        return []
    shown: list[int] = []
    for i in ranked:
        if not resolved[i] and barren[i] < PATIENCE and not tied[i, shown].any():
            shown.append(i)
    whole = max(1, sum(better[i] == 0 for i in shown) // k)
    if compared[np.ix_(shown[:k], shown[:k])].all():
        return []
    return [shown[start : whole * k : whole] for start in range(whole)]


def _learn(reach: NDArray[np.bool_], judged: Judged) -> bool:
    """Add to what is known all that follows from the answer; whether that is anything."""
    named, rest = judged.order[: judged.named], judged.order[judged.named :]
    before = int(reach.sum())
    for better, worse in [*pairwise(named), *((named[-1], i) for i in rest if named)]:
        reach |= np.outer(reach[:, better], reach[worse])
    return int(reach.sum()) > before
