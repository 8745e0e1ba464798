"""Top-down partitioning: what one window puts below a pivot is not looked at again."""

from __future__ import annotations

from collections.abc import Sequence

from llmrank.errors import SpecError
from llmrank.plan import Plan
from llmrank.rerank.blocks import Judged, check_by, ordered
from llmrank.types import Candidate, Ordering, Query


def tdpart(
    query: Query,
    candidates: Sequence[Candidate],
    *,
    window: int = 20,
    pivot: int = 10,
    by: str = "text",
) -> Plan[Ordering]:
    """Order the first window, keep what beats its document at place `pivot`, and begin again.

    The candidates beyond the window are held against the pivot in groups of `window - 1`, all in
    one round. The documents above the pivot in its window and in the groups stay in play, however
    many they are, until they fit into one window, which is put in order, with the last pivot where
    it has room for it; if no group had any, the order of the first window stands. Those that go on
    from the groups stand by their places there, the first of every group before the second of any.
    Behind them come the pivot, the rest of its window, and the rest of the groups, group after
    group, each as its answer has them; what was left behind earlier comes last.

    Every level puts at least d = window - pivot + 1 documents behind it and takes two rounds of
    1 + ceil((n - window) / (window - 1)) calls together, n being what is in play; the last window
    takes one. With d = 1 that can be many levels. A window without a usable answer keeps its
    order, a group without one stays behind the pivot, and of a group's answer only documents that
    it named go on. Parry et al. 2024 (TDPart), arXiv 2405.14589, there with a cap on what is
    kept and without the pivot in the last window.
    """
    if not 1 <= pivot <= window or window < 2:
        raise SpecError(f"tdpart needs 1 <= pivot <= window and window >= 2, not {pivot, window}")
    check_by("tdpart", by, window)
    order, behind = list(range(len(candidates))), list[int]()
    while True:
        head, rest = order[:window], order[window:]
        (judged,) = yield from ordered(query, candidates, [head], by)
        head = list(judged.order) if judged is not None else head
        if not rest:
            break
        mark = head[pivot - 1]
        starts = range(0, len(rest), window - 1)
        groups = [[mark, *rest[start : start + window - 1]] for start in starts]
        answers = yield from ordered(query, candidates, groups, by)
        above, below = _parted(mark, groups, answers)
        # With room for it the pivot stays in play at no cost: a noisy judge may have it too low.
        kept = [mark] if above and pivot + len(above) <= window else []
        behind = [*head[pivot - 1 + len(kept) :], *below, *behind]
        head = head[: pivot - 1]
        if not above:
            break
        order = [*head, *above, *kept]
    return Ordering((*head, *behind), (None,) * len(candidates))


def _parted(
    mark: int, groups: Sequence[Sequence[int]], answers: Sequence[Judged | None]
) -> tuple[list[int], list[int]]:
    """The documents of all groups that stand above the mark, and the others."""
    above: list[tuple[int, int, int]] = []
    below: list[int] = []
    for number, (group, judged) in enumerate(zip(groups, answers, strict=True)):
        order = group if judged is None else judged.order
        better = 0 if judged is None else min(judged.named, order.index(mark))
        above += [(place, number, document) for place, document in enumerate(order[:better])]
        below += [document for document in order[better:] if document != mark]
    return [document for _, _, document in sorted(above)], below
