"""Listwise methods: the model orders several documents at once."""

from __future__ import annotations

from collections.abc import Sequence

from llmrank.errors import SpecError
from llmrank.plan import Order, Plan, ask
from llmrank.types import Candidate, Ordering, Query


def sliding(
    query: Query, candidates: Sequence[Candidate], *, window: int = 20, stride: int = 10
) -> Plan[Ordering]:
    """A window slides from the last candidate to the first; each answer reorders its window.

    The best `window - stride` documents of a window go on into the next. One call for n <= window,
    else 1 + ceil((n - window) / stride), each a round of its own. A window without a usable answer
    keeps its order. Sun et al. 2023 (RankGPT), arXiv 2304.09542.
    """
    if not 1 <= stride <= window or window < 2:
        raise SpecError(
            f"sliding needs 1 <= stride <= window and window >= 2, not {window, stride}"
        )
    order = list(range(len(candidates)))
    for start in starts(len(candidates), window, stride):
        shown = order[start : start + window]
        answer = yield from ask(Order(query, tuple(candidates[i].document for i in shown)))
        if answer.value is not None:
            order[start : start + window] = [shown[place] for place in answer.value.order]
    return Ordering(tuple(order), (None,) * len(order))


def starts(count: int, window: int, stride: int) -> list[int]:
    """First positions of the windows over `count` candidates, from the back to the front."""
    if count < 2:
        return []
    last = max(0, count - window)
    return [*range(last, 0, -stride), 0]
