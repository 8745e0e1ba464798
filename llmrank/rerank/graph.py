"""Ranking by a graph of what is known to be better than what."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import ceil

import numpy as np
from numpy.typing import NDArray

from llmrank.errors import SpecError
from llmrank.plan import Plan
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
    documents that are not resolved, no two of them tied, those with the fewest better ones first,
    until the `m` documents with the fewest better ones are all resolved. The score is the number
    of documents known to be worse less that of those known to be better; the tied stand in the
    order of their wins against one another in the answers themselves.

    The two shown first have equally many better ones, so they are not compared yet and every
    complete answer tells something new. There is one call at a time, and never more than
    min(m, n) * ceil((n - 1) / (k - 1)) of them (1 for n <= k), which is enough for answers without
    a contradiction: so many settle who comes first, second, ... Of an answer that names a part
    only, the named ones come before the rest. A call that tells nothing new, having failed for
    example, sends its documents behind others with equally many better ones, and after a second
    such call they are left as they are; a document of which nothing is known keeps its place.
    BlitzRank, arXiv 2602.05448.
    """
    if k < 2 or m < 1:
        raise SpecError(f"blitz needs k >= 2 and m >= 1, not {k, m}")
    check_by("blitz", by, k)
    count = len(candidates)
    reach = np.eye(count, dtype=np.bool_)
    wins = np.zeros((count, count), dtype=np.int64)
    barren = [0] * count
    for _ in range(1 if count <= k else min(m, count) * ceil((count - 1) / (k - 1))):
        block = _open(reach, barren, k, m)
        if not block:
            break
        (judged,) = yield from ordered(query, candidates, [block], by)
        if judged is not None:
            _count(wins, judged)
        if judged is None or not _learn(reach, judged):
            for i in block:
                barren[i] += 1
    worse, better = reach.sum(axis=1), reach.sum(axis=0)
    # Direct wins decide among the tied: a part of one, as the differences of the others are whole.
    won = np.where(reach & reach.T, wins - wins.T, 0).sum(axis=1) / (2 * wins.sum() + 1)
    known = worse + better > 2
    scores = [
        float(score) if seen else None
        for score, seen in zip((worse - better + won).tolist(), known.tolist(), strict=True)
    ]
    return Ordering(by_score(scores), tuple(scores))


def _open(reach: NDArray[np.bool_], barren: Sequence[int], k: int, m: int) -> list[int]:
    """The documents to show next; none when the top is resolved or nothing can be learnt."""
    tied, compared = reach & reach.T, reach | reach.T
    resolved = compared.sum(axis=1) == len(barren)
    better = reach.sum(axis=0) - tied.sum(axis=0)
    ranked = sorted(range(len(barren)), key=lambda i: (better[i], barren[i], i))
    if resolved[ranked[:m]].all():
        return []
    block: list[int] = []
    for i in ranked:
        if len(block) == k:
            break
        if not resolved[i] and barren[i] < PATIENCE and not tied[i, block].any():
            block.append(i)
    return [] if compared[np.ix_(block, block)].all() else block


def _count(wins: NDArray[np.int64], judged: Judged) -> None:
    """Add every pair that the answer itself put in order."""
    for place, item in enumerate(judged.order[: judged.named]):
        wins[item, list(judged.order[place + 1 :])] += 1


def _learn(reach: NDArray[np.bool_], judged: Judged) -> bool:
    """Add to what is known all that follows from the answer; whether that is anything."""
    named, rest = judged.order[: judged.named], judged.order[judged.named :]
    before = int(reach.sum())
    for better, worse in [*pairwise(named), *((named[-1], i) for i in rest if named)]:
        reach |= np.outer(reach[:, better], reach[worse])
    return int(reach.sum()) > before
