"""Attention methods: documents are ranked by the attention that the query's tokens pay them."""

from __future__ import annotations

from collections.abc import Sequence

from llmrank.errors import SpecError
from llmrank.plan import Attend, Plan, ask_all
from llmrank.rerank.order import by_score
from llmrank.types import Candidate, Ordering, Query


def attention(query: Query, candidates: Sequence[Candidate], *, window: int = 0) -> Plan[Ordering]:
    """In-context reranking: the calibrated attention mass of each document, best first.

    All candidates go into one call, or with a `window` into ceil(n / window) calls of one round,
    as equal in size as can be. The masses of different calls are sorted together: calibration
    takes off what a document draws under any query, but not that fewer documents share more of the
    attention. The candidates of a call that fails keep their places. Chen et al. 2024 (ICR), arXiv
    2410.02642.
    """
    if window < 0 or window == 1:
        raise SpecError(f"attention needs a window of at least 2, or 0 for all, not {window}")
    count = len(candidates)
    blocks = _blocks(count, window or count) if count > 1 else []
    docs = [candidate.document for candidate in candidates]
    answers = yield from ask_all([Attend(query, tuple(docs[i] for i in block)) for block in blocks])
    scores: list[float | None] = [None] * count
    for block, answer in zip(blocks, answers, strict=True):
        if answer.value is not None:
            scores[block.start : block.stop] = answer.value
    return Ordering(by_score(scores), tuple(scores))


def _blocks(count: int, size: int) -> list[range]:
    """Neighbours in as few blocks of at most this size as can be, all nearly equally large."""
    needed = -(-count // size)
    return [range(i * count // needed, (i + 1) * count // needed) for i in range(needed)]
