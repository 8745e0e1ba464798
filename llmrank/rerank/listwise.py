"""Listwise methods: the model orders several documents at once."""

from __future__ import annotations

from collections.abc import Sequence

from llmrank.errors import SpecError
from llmrank.plan import Plan
from llmrank.rerank.blocks import check_by, ordered
from llmrank.types import Candidate, Ordering, Query


def sliding(
    query: Query,
    candidates: Sequence[Candidate],
    *,
    window: int = 20,
    stride: int = 10,
    passes: int = 1,
    by: str = "text",
) -> Plan[Ordering]:
    """A window slides from the last candidate to the first; each answer reorders its window.

    The best `window - stride` documents of a window go on into the next. One call for n <= window,
    else 1 + ceil((n - window) / stride) in each of the `passes`, each a round of its own. A window
    without a usable answer keeps its order. Sun et al. 2023 (RankGPT), arXiv 2304.09542; by labels
    it is FIRST, arXiv 2406.15657.
    """
    if not 1 <= stride <= window or window < 2 or passes < 1:
        raise SpecError(
            "sliding needs 1 <= stride <= window, window >= 2 and passes >= 1, "
            f"not {window, stride, passes}"
        )
    check_by("sliding", by, window)
    order = list(range(len(candidates)))
    for _ in range(passes):
        for start in starts(len(candidates), window, stride):
            (judged,) = yield from ordered(query, candidates, [order[start : start + window]], by)
            if judged is not None:
                order[start : start + window] = judged.order
    return Ordering(tuple(order), (None,) * len(order))


def full(query: Query, candidates: Sequence[Candidate], *, by: str = "text") -> Plan[Ordering]:
    """All candidates in one long call, for models with the context and the training for it.

    An answer that cannot be used leaves the first-stage order, and what it does not name follows.
    Liu et al. 2024 (FullRank), arXiv 2412.14574.
    """
    check_by("full", by, len(candidates))
    every = list(range(len(candidates)))
    (judged,) = yield from ordered(query, candidates, [every], by)
    return Ordering(tuple(every) if judged is None else judged.order, (None,) * len(every))


def starts(count: int, window: int, stride: int) -> list[int]:
    """First positions of the windows over `count` candidates, from the back to the front."""
    if count < 2:
        return []
    last = max(0, count - window)
    return [*range(last, 0, -stride), 0]
