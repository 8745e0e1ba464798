"""Setwise methods: the model names the best of a few documents, and a sort does the rest."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import cast

from llmrank.errors import SpecError
from llmrank.plan import Answer, By, Choice, Pick, Plan, ask_all, together
from llmrank.rerank.blocks import LETTERS, check_by
from llmrank.types import Candidate, Ordering, Query

Best = Callable[[Sequence[int]], Plan[int]]
"""Finds the best of a few candidates, the parent in a heap first."""

Reorder = Callable[[Sequence[Sequence[int]]], Plan[list[Sequence[int]]]]
"""Puts the best of every window first, all in one round."""


def setwise(
    query: Query,
    candidates: Sequence[Candidate],
    *,
    c: int = 4,
    k: int = 10,
    by: str = "text",
    votes: int = 1,
    seed: int = 0,
) -> Plan[Ordering]:
    """Heap sort for the top `k`, each call naming the best of a parent and its `c - 1` children.

    The other documents follow in first-stage order. A set is shown in first-stage order, or with
    `votes` > 1 in that many shuffles in one round, whose votes (by labels, probabilities) are added
    up. Where no answer is usable, the earliest of the set by first-stage rank counts as the best.
    With H = floor(log(n * (c - 2)) / log(c - 1)), the height of the heap, and K = min(k, n) there
    are at most `votes` * ((n - 1 + (c - 3) * H) / (c - 2) + (K - 1) * H) calls in H * (H + 1) / 2 +
    (K - 1) * H rounds. Zhuang et al. 2023 (Setwise), arXiv 2310.09497.
    """
    _check("setwise", c, k, by, votes, least=3)
    ballot = _Ballot(query, candidates, by, votes, seed)

    def best(members: Sequence[int]) -> Plan[int]:
        earliest_first = sorted(members)
        return (yield from ballot.best(earliest_first, default=earliest_first[0]))

    top = yield from heap_top(len(candidates), c - 1, k, best)
    return top_first(top, len(candidates))


def setwise_bubblesort(
    query: Query,
    candidates: Sequence[Candidate],
    *,
    c: int = 4,
    k: int = 10,
    by: str = "text",
    votes: int = 1,
    seed: int = 0,
) -> Plan[Ordering]:
    """Bubble sort for the top `k`: windows of `c` from the back, overlapping by one.

    The best of a window goes to its front; by labels the whole window is put in the order of the
    probabilities. With `votes` > 1 each window is shown in that many shuffles in one round. What is
    not in the top `k` stays as the passes left it, and so does a window without a usable answer.
    With P = min(k, n - 1) passes the calls are `votes` times the sum of ceil((n - 1 - p) / (c - 1))
    over p < P, in at most 2 * (P - 1) + ceil((n - P) / (c - 1)) rounds. Zhuang et al. 2023
    (Setwise), arXiv 2310.09497.
    """
    _check("setwise_bubblesort", c, k, by, votes)
    ballot = _Ballot(query, candidates, by, votes, seed)
    order = yield from bubble(len(candidates), c, k, ballot.reordered)
    return Ordering(tuple(order), (None,) * len(order), ranked=min(k, len(order)))


def setwise_insertion(
    query: Query,
    candidates: Sequence[Candidate],
    *,
    c: int = 4,
    k: int = 10,
    by: str = "text",
) -> Plan[Ordering]:
    """Sort the first `k`, then show the k-th with the next `c - 1` documents until it is the best.

    A document that beats the k-th takes its place in the sorted top by binary search, one call a
    step, and the next document joins the others in the set; where the k-th wins, all of them are
    done with. The document of the top is shown first, and stays ahead where an answer fails; the
    first `k` are sorted as in `setwise`. The rest follows in first-stage order. From
    ceil((n - K) / (c - 1)) calls after sorting the first K = min(k, n) to at most
    (n - K) * (1 + ceil(log2(K))), each a round of its own. Podolak et al. 2025 (Setwise
    Insertion), arXiv 2504.10509.
    """
    _check("setwise_insertion", c, k, by, least=3)
    ballot = _Ballot(query, candidates, by)
    first = yield from setwise(query, candidates[:k], c=c, k=k, by=by)
    top, rest = list(first.order), list(range(k, len(candidates)))
    while rest:
        kth = top[-1]
        winner = yield from ballot.best([kth, *rest[: c - 1]], default=kth)
        if winner == kth:
            del rest[: c - 1]
            continue
        rest.remove(winner)
        top.pop()
        low, high = 0, len(top)
        while low < high:
            middle = (low + high) // 2
            better = yield from ballot.best([top[middle], winner], default=top[middle])
            low, high = (low, middle) if better == winner else (middle + 1, high)
        top.insert(low, winner)
    return top_first(top, len(candidates))


def heap_top(count: int, arity: int, k: int, best: Best) -> Plan[list[int]]:
    """The best `k` of range(count), in order, from a heap whose levels are built side by side."""
    heap, levels, first = list(range(count)), list[range](), 0
    while arity * first + 1 < count:
        levels.append(range(first, arity * first + 1))
        first = arity * first + 1
    for level in reversed(levels):
        yield from together([_sift(heap, node, arity, best) for node in level])
    top: list[int] = []
    while heap and len(top) < k:
        top.append(heap[0])
        last = heap.pop()
        if heap and len(top) < k:
            heap[0] = last
            yield from _sift(heap, 0, arity, best)
    return top


def _sift(heap: list[int], node: int, arity: int, best: Best) -> Plan[None]:
    """Let the item at a node sink until it is better than its children."""
    while children := range(arity * node + 1, min(arity * (node + 1) + 1, len(heap))):
        winner = yield from best([heap[i] for i in (node, *children)])
        if winner == heap[node]:
            return
        place = next(i for i in children if heap[i] == winner)
        heap[node], heap[place] = heap[place], heap[node]
        node = place


def bubble(count: int, size: int, passes: int, reorder: Reorder) -> Plan[list[int]]:
    """Passes of windows from the back that overlap by one; pass p leaves out the first p places.

    A pass follows two windows behind the one before it, in the same rounds: what it sees then
    changes no more, so the result is that of one pass after another.
    """
    order = list(range(count))
    runs = [_windows(done, count, size) for done in range(min(passes, count - 1))]
    for step in range(max((2 * p + len(run) for p, run in enumerate(runs)), default=0)):
        spans = [run[step - 2 * p] for p, run in enumerate(runs) if 0 <= step - 2 * p < len(run)]
        found = yield from reorder([order[span] for span in spans])
        for span, window in zip(spans, found, strict=True):
            order[span] = window
    return order


def _windows(first: int, count: int, size: int) -> list[slice]:
    ends = range(count - 1, first, 1 - size)
    return [slice(max(first, end - size + 1), end + 1) for end in ends]


def top_first(top: Sequence[int], count: int) -> Ordering:
    """An ordering without scores: these are ranked, the others follow in first-stage order."""
    chosen = set(top)
    rest = (i for i in range(count) if i not in chosen)
    return Ordering((*top, *rest), (None,) * count, ranked=len(top))


@dataclass(frozen=True, slots=True)
class _Ballot:
    """Asks which of a few candidates is the best, by `votes` shuffles where that is above 1."""

    query: Query
    candidates: Sequence[Candidate]
    by: str
    votes: int = 1
    seed: int = 0

    def best(self, members: Sequence[int], default: int) -> Plan[int]:
        """The one with the most votes, of equals the first; `default` without a usable answer."""
        (shares,) = yield from self.shares([members])
        return default if shares is None else members[shares.index(max(shares))]

    def reordered(self, windows: Sequence[Sequence[int]]) -> Plan[list[Sequence[int]]]:
        """Every window with its best in front; by labels in the order of the probabilities."""
        shares = yield from self.shares(windows)
        return [
            window if share is None else self._reordered(window, share)
            for window, share in zip(windows, shares, strict=True)
        ]

    def _reordered(self, window: Sequence[int], shares: Sequence[float]) -> Sequence[int]:
        if self.by == "labels":
            return [window[i] for i in sorted(range(len(window)), key=lambda i: -shares[i])]
        winner = shares.index(max(shares))
        return [window[winner], *window[:winner], *window[winner + 1 :]]

    def shares(self, sets: Sequence[Sequence[int]]) -> Plan[list[list[float] | None]]:
        """What the members of every set got in votes, all in one round; None without an answer."""
        shown = [self._shown(members) for members in sets]
        by = cast("By", self.by)
        answers = yield from ask_all(
            [
                Pick(self.query, tuple(self.candidates[i].document for i in one), by=by)
                for orders in shown
                for one in orders
            ]
        )
        replies = iter(answers)
        return [
            _counted(members, [(one, next(replies)) for one in orders])
            for members, orders in zip(sets, shown, strict=True)
        ]

    def _shown(self, members: Sequence[int]) -> list[Sequence[int]]:
        if self.votes == 1:
            return [members]
        # Seeded by the set alone: the sets of parallel plans are asked in no fixed order.
        random = Random(f"{self.seed}/{self.query.id}/{members}")
        return [random.sample(members, len(members)) for _ in range(self.votes)]


def _counted(
    members: Sequence[int], replies: Sequence[tuple[Sequence[int], Answer[Choice]]]
) -> list[float] | None:
    got: dict[int, list[float]] = {member: [] for member in members}
    for shown, answer in replies:
        if answer.value is None:
            continue
        best, probabilities = answer.value
        for place, member in enumerate(shown):
            got[member].append(probabilities[place] if probabilities else float(place == best[0]))
    shares = [math.fsum(got[member]) for member in members]
    return shares if any(got.values()) else None


def _check(name: str, c: int, k: int, by: str, votes: int = 1, least: int = 2) -> None:
    if not least <= c <= LETTERS or k < 1 or votes < 1:
        raise SpecError(
            f"{name} needs {least} <= c <= {LETTERS}, k >= 1 and votes >= 1, not {c, k, votes}"
        )
    check_by(name, by, c)
