"""Tournaments: groups of documents send their best on into the next stage."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import count as numbers
from math import ceil
from random import Random

from llmrank.errors import SpecError
from llmrank.plan import Pick, Plan, ask_all, together
from llmrank.rerank.blocks import LETTERS, check_by, ordered
from llmrank.rerank.order import by_score
from llmrank.rerank.setwise import top_first
from llmrank.types import Candidate, Ordering, Query


def tourrank(
    query: Query,
    candidates: Sequence[Candidate],
    *,
    tournaments: int = 1,
    window: int = 20,
    by: str = "text",
    seed: int = 0,
) -> Plan[Ordering]:
    """Play tournaments side by side; a document gets a point for every stage that it survives.

    A stage deals those still in play, in first-stage order, round-robin into its groups, shuffles
    each and asks it for its best; `schedule` says how many groups and survivors there are. 100
    documents take 13 calls in 5 rounds a tournament: 100 - 50 - 20 - 10 - 5 - 2. The score is the
    sum of the points, ties going to the earlier first-stage rank. The best document always gets
    all points, but shares them with whoever reached the end with it.

    A group without a usable answer, or with one that names too few, fills its places in
    first-stage order. A document none of whose groups, in any tournament, gave a usable answer has
    no score and keeps its place. Chen et al. 2024 (TourRank), arXiv 2406.11678.
    """
    if tournaments < 1 or not 5 <= window <= LETTERS:
        raise SpecError(
            f"tourrank needs tournaments >= 1 and a window from 5 to {LETTERS}, "
            f"not {tournaments, window}"
        )
    check_by("tourrank", by, window)
    played = yield from together(
        [
            _tournament(query, candidates, window, by, Random(f"{seed}/{query.id}/{number}"))
            for number in range(tournaments if len(candidates) > 1 else 0)
        ]
    )
    judged = set().union(*(heard for _, heard in played))
    scores = [
        float(sum(points[i] for points, _ in played)) if i in judged else None
        for i in range(len(candidates))
    ]
    return Ordering(by_score(scores), tuple(scores))


def schedule(count: int, window: int) -> list[tuple[int, int]]:
    """The stages of a tournament of `count` documents: how many survive each, in how many groups.

    Of N documents there survive s, the largest of 1, 2, 5, 10, 20, 50, ... with s <= N / 2, until
    two or one are left. The first stage has ceil(N / window) groups, later ones have one where
    N <= window and else min(s, ceil(2 * N / window)). Groups differ in size by one at most, and
    so do the numbers of their survivors.
    """
    stages: list[tuple[int, int]] = []
    while count > 2 or (count == 2 and not stages):
        steps = (digit * 10**power for power in numbers() for digit in (1, 2, 5))
        survivors = 1
        for step in steps:
            if 2 * step > count:
                break
            survivors = step
        groups = ceil((2 if stages and count > window else 1) * count / window)
        stages.append((survivors, min(survivors, groups)))
        count = survivors
    return stages


def _tournament(
    query: Query, candidates: Sequence[Candidate], window: int, by: str, rng: Random
) -> Plan[tuple[list[int], set[int]]]:
    """One tournament: the points of every candidate, and who was in a group that was answered."""
    points, heard = [0] * len(candidates), set[int]()
    alive = list(range(len(candidates)))
    for survivors, groups in schedule(len(candidates), window):
        dealt = [alive[group::groups] for group in range(groups)]
        places = [len(range(group, survivors, groups)) for group in range(groups)]
        shown = [rng.sample(group, len(group)) for group in dealt]
        picked = yield from _picked(query, candidates, shown, places, by)
        alive = []
        for group, best, free in zip(dealt, picked, places, strict=True):
            heard.update(group if best is not None else ())
            alive += list(dict.fromkeys([*(best or ()), *group]))[:free]
        alive.sort()
        for i in alive:
            points[i] += 1
    return points, heard


def _picked(
    query: Query,
    candidates: Sequence[Candidate],
    groups: Sequence[Sequence[int]],
    places: Sequence[int],
    by: str,
) -> Plan[list[Sequence[int] | None]]:
    """The best of every group as far as its answer names them, best first; None without one."""
    if by == "labels":
        orders = yield from ordered(query, candidates, groups, by)
        return [None if judged is None else judged.order[: judged.named] for judged in orders]
    answers = yield from ask_all(
        [
            Pick(query, tuple(candidates[i].document for i in group), free)
            for group, free in zip(groups, places, strict=True)
        ]
    )
    return [
        None if answer.value is None else [group[place] for place in answer.value.best]
        for group, answer in zip(groups, answers, strict=True)
    ]


def listt5(
    query: Query,
    candidates: Sequence[Candidate],
    *,
    m: int = 5,
    r: int = 2,
    k: int = 10,
    by: str = "text",
) -> Plan[Ordering]:
    """Find the top `k` by a tree of calls on `m` documents, each of which sends its best `r` up.

    The leaves hold `m` candidates each, in first-stage order; what they send up is dealt by `m`
    to the next level, and so on to a single call, whose best `r` are taken out. Their places are
    filled from below, and only calls that see a new document are asked again, until `k` documents
    are out; the others follow in first-stage order. The calls of a level are one round. With
    L = 1 + ceil(log((n - r) / (m - r)) / log(m / r)) levels at most for n > m, building the tree
    takes L rounds and every further `r` documents take L - 1 at most.

    If every answer is right, the best `r` of what is left always reach the top, so all `k` places
    are. A call without a usable answer puts its documents in first-stage order. Yoon et al. 2024
    (ListT5), arXiv 2402.15838.
    """
    if not 1 <= r <= m // 2 or k < 1:
        raise SpecError(f"listt5 needs 1 <= r <= m / 2 and k >= 1, not {m, r, k}")
    check_by("listt5", by, m)
    levels = _tree(len(candidates), m, r)
    seen: list[list[Sequence[int]]] = [[() for _ in nodes] for nodes in levels]
    sent: list[list[list[int | None]]] = [[[None] * r for _ in nodes] for nodes in levels]
    found: list[int] = []
    while len(found) < min(k, len(candidates)):
        below: list[list[int | None]] = [[i] for i in range(len(candidates))]
        for i in found:
            below[i] = [None]
        for nodes, orders, outputs in zip(levels, seen, sent, strict=True):
            inputs = [sorted(_filled(below[child][slot] for child, slot in node)) for node in nodes]
            stale = [j for j, docs in enumerate(inputs) if not set(docs) <= set(orders[j])]
            answers = yield from ordered(query, candidates, [inputs[j] for j in stale], by)
            for j, judged in zip(stale, answers, strict=True):
                orders[j] = inputs[j] if judged is None else judged.order
            for j, docs in enumerate(inputs):
                outputs[j] = _refilled(outputs[j], [i for i in orders[j] if i in docs][:r])
            below = outputs
        (root,), best = seen[-1], _filled(below[0])
        found += sorted(best, key=root.index)[: k - len(found)]
    return top_first(found, len(candidates))


def _tree(count: int, m: int, r: int) -> list[list[list[tuple[int, int]]]]:
    """The levels of the tree: of every call, which outputs of which calls below it shows."""
    levels: list[list[list[tuple[int, int]]]] = []
    slots = [(i, 0) for i in range(count)]
    while not levels or len(levels[-1]) > 1:
        levels.append([slots[start : start + m] for start in range(0, len(slots), m)])
        slots = [(j, slot) for j, node in enumerate(levels[-1]) for slot in range(r)[: len(node)]]
    return levels


def _filled(slots: Iterable[int | None]) -> list[int]:
    return [i for i in slots if i is not None]


def _refilled(slots: Sequence[int | None], best: Sequence[int]) -> list[int | None]:
    """The best in the slots: those that were there before stay where they are.

    So a document that is taken out changes one call a level, not its neighbours too.
    """
    new = iter([i for i in best if i not in slots])
    return [i if i in best else next(new, None) for i in slots]
