"""Pairwise methods: the model picks the better of two documents, shown in both orders.

A comparison is two calls in one round. A document wins where both calls pick it; all else, a failed
call too, is a tie.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations, permutations
from typing import cast

from llmrank.errors import SpecError
from llmrank.plan import Answer, By, Choice, Pick, Plan, ask_all
from llmrank.rerank.blocks import check_by
from llmrank.rerank.order import by_score
from llmrank.rerank.setwise import bubble, heap_top, top_first
from llmrank.types import Candidate, Ordering, Query

Pair = tuple[int, int]


def prp(
    query: Query, candidates: Sequence[Candidate], *, sliding: int = 10, by: str = "text"
) -> Plan[Ordering]:
    """Bubble sort from the back (PRP-Sliding-K): two neighbours change places where the lower wins.

    `sliding` passes settle as many places at the top; a pass leaves out those settled before it,
    and runs in the same rounds as the others, two places behind the pass before it. A tie changes
    nothing. With P = min(sliding, n - 1) passes there are P * (2n - 1 - P) calls in n + P - 2
    rounds. Qin et al. 2023 (PRP), arXiv 2306.17563.
    """
    _check("prp", "sliding", sliding, by)

    def reorder(windows: Sequence[Sequence[int]]) -> Plan[list[Sequence[int]]]:
        pairs = [(upper, lower) for upper, lower in windows]
        wins = yield from _compared(query, candidates, pairs, by)
        return [pair[::-1] if win == 0 else pair for pair, win in zip(pairs, wins, strict=True)]

    order = yield from bubble(len(candidates), 2, sliding, reorder)
    return Ordering(tuple(order), (None,) * len(order), ranked=min(sliding, len(order)))


def prp_allpair(
    query: Query, candidates: Sequence[Candidate], *, by: str = "text"
) -> Plan[Ordering]:
    """Compare all pairs (PRP-Allpair): the score is wins plus half the ties.

    n * (n - 1) calls in one round. A document none of whose calls gave an answer has no score and
    keeps its place. Qin et al. 2023 (PRP), arXiv 2306.17563.
    """
    check_by("prp_allpair", by, 2)
    pairs = list(combinations(range(len(candidates)), 2))
    wins = yield from _compared(query, candidates, pairs, by)
    return _summed(len(candidates), pairs, wins)


def prp_heapsort(
    query: Query, candidates: Sequence[Candidate], *, k: int = 10, by: str = "text"
) -> Plan[Ordering]:
    """Heap sort for the top `k` (PRP-Sorting); the others follow in first-stage order.

    A tie goes to the earlier first-stage rank. With H = floor(log2(n)), the height of the heap, and
    K = min(k, n) there are at most 4 * (n - 1 + (K - 1) * H) calls in H * (H + 2 * K - 1) rounds.
    Qin et al. 2023 (PRP), arXiv 2306.17563.
    """
    _check("prp_heapsort", "k", k, by)

    def better(pair: Pair) -> Plan[int]:
        (win,) = yield from _compared(query, candidates, [pair], by)
        if win == 1:
            return pair[0]
        return pair[1] if win == 0 else min(pair)

    def best(members: Sequence[int]) -> Plan[int]:
        parent, child, *sibling = members
        if sibling:
            child = yield from better((child, sibling[0]))
        return (yield from better((parent, child)))

    top = yield from heap_top(len(candidates), 2, k, best)
    return top_first(top, len(candidates))


def prp_soft(query: Query, candidates: Sequence[Candidate]) -> Plan[Ordering]:
    """Add up the probabilities that a document got against every other, in both orders.

    n * (n - 1) calls by labels in one round; a failed one gives half to each side. A document none
    of whose calls gave an answer has no score and keeps its place. With right answers the order is
    exact where the probabilities grow with the difference in relevance. Huang and Chen 2024
    (InstUPR), arXiv 2403.16435.
    """
    pairs = list(permutations(range(len(candidates)), 2))
    answers = yield from _asked(query, candidates, pairs, "labels")
    return _summed(len(candidates), pairs, [_share(answer) for answer in answers])


def _compared(
    query: Query, candidates: Sequence[Candidate], pairs: Sequence[Pair], by: str
) -> Plan[list[float | None]]:
    """What the first of every pair got, in one round: 1, 0, or ½; None where both calls failed."""
    shown = [order for a, b in pairs for order in ((a, b), (b, a))]
    answers = yield from _asked(query, candidates, shown, by)
    return [
        _verdict(_share(there), _share(back))
        for there, back in zip(answers[::2], answers[1::2], strict=True)
    ]


def _asked(
    query: Query, candidates: Sequence[Candidate], shown: Sequence[Pair], by: str
) -> Plan[list[Answer[Choice]]]:
    docs = [candidate.document for candidate in candidates]
    asks = [Pick(query, (docs[a], docs[b]), by=cast("By", by)) for a, b in shown]
    return (yield from ask_all(asks))


def _share(answer: Answer[Choice]) -> float | None:
    """What the document shown first got: its probability, by text 1 or 0."""
    if answer.value is None:
        return None
    best, probabilities = answer.value
    return probabilities[0] if probabilities else float(best[0] == 0)


def _verdict(there: float | None, back: float | None) -> float | None:
    """The result of a comparison from the shares of the document shown first in each order."""
    if there is None and back is None:
        return None
    if there is None or back is None:
        return 0.5
    if there > 0.5 > back:
        return 1.0
    return 0.0 if there < 0.5 < back else 0.5


def _summed(count: int, pairs: Sequence[Pair], shares: Sequence[float | None]) -> Ordering:
    """Give the first of every pair its share and the second the rest; half each where unknown."""
    got: list[list[float]] = [[] for _ in range(count)]
    judged: set[int] = set()
    for (a, b), share in zip(pairs, shares, strict=True):
        got[a].append(0.5 if share is None else share)
        got[b].append(0.5 if share is None else 1 - share)
        judged.update(() if share is None else (a, b))
    # An exact sum, so that equal shares added up in another order are a tie.
    scores = tuple(math.fsum(row) if i in judged else None for i, row in enumerate(got))
    return Ordering(by_score(scores), scores)


def _check(name: str, parameter: str, value: int, by: str) -> None:
    if value < 1:
        raise SpecError(f"{name} needs {parameter} >= 1, not {value}")
    check_by(name, by, 2)
