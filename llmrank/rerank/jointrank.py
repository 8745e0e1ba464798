"""JointRank: overlapping blocks, all ordered in one round, and one ranking made of them."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan
from random import Random

import llmrank.rerank.designs as designs
from llmrank.errors import SpecError
from llmrank.plan import Plan
from llmrank.rerank.aggregation import AGGREGATORS
from llmrank.rerank.blocks import check_by, ordered
from llmrank.rerank.order import by_score
from llmrank.types import Candidate, Ordering, Query


def jointrank(
    query: Query,
    candidates: Sequence[Candidate],
    *,
    k: int = 20,
    r: int = 2,
    design: str = "replicate",
    aggregate: str = "pagerank",
    by: str = "text",
    seed: int = 0,
) -> Plan[Ordering]:
    """Order blocks of k, every candidate being in r of them, and score all by the orders.

    The `design` says what stands together: replicate, latin, triangular or random, the second and
    third with two blocks for each candidate whatever r is. `aggregate` makes scores of the orders:
    win_rate, pagerank, elo, bradley_terry, rank_centrality or borda. Blocks are shown in
    first-stage order (the paper's code shows them as drawn). ceil(n * r / k) calls with replicate
    and random, one for n <= k, in one round. A failed block says nothing; a candidate of which no
    block says anything keeps its first-stage place. Dedov 2025, arXiv 2506.22262.
    """
    if k < 2 or r < 2:
        raise SpecError(
            f"jointrank needs k >= 2 and r >= 2, not {k, r}: blocks that share no item "
            "cannot be joined"
        )
    if design not in designs.DESIGNS:
        known = ", ".join(designs.DESIGNS)
        raise SpecError(f"jointrank: design must be one of {known}, not {design!r}")
    if aggregate not in AGGREGATORS:
        known = ", ".join(AGGREGATORS)
        raise SpecError(f"jointrank: aggregate must be one of {known}, not {aggregate!r}")
    check_by("jointrank", by, k)
    rng = Random(f"{seed}/{query.id}")
    blocks = designs.design(design, len(candidates), k, r, rng)
    judged = yield from ordered(query, candidates, blocks, by)
    found = AGGREGATORS[aggregate]([j for j in judged if j is not None], len(candidates))
    scores = [None if isnan(score) else float(score) for score in found]
    return Ordering(by_score(scores), tuple(scores))
