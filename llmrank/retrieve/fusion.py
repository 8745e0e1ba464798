"""Fusion: one ranking out of several, by ranks, by normalised scores, or by their product.

Every function returns each document that occurs anywhere, score falling, then id falling. Sums are
exactly rounded, so that the order of the lists does not matter.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, get_args

from llmrank.errors import InputError
from llmrank.retrieve._folder import Scored, best_first

Fusion = Literal["rrf", "minmax", "zscore", "product"]


def hybrid(
    fusion: Fusion,
    lexical: Sequence[Scored],
    dense: Sequence[Scored],
    *,
    dense_weight: float | None = None,
) -> list[Scored]:
    """Fuse what BM25 and dense search found for one query.

    `dense` weighs `dense_weight`, from 0 to 1, and BM25 the rest; None is one half. In `rrf` (k=60)
    the two weights add up to 2, so that equal weights give the usual sum. `product` has none:
    InputError for a weight with it, or a list that the function of that name does not take.
    """
    check_fusion(fusion, dense_weight)
    if fusion == "product":
        return product(lexical, dense)
    weight = 0.5 if dense_weight is None else dense_weight
    weights = (1 - weight, weight)
    if fusion == "rrf":
        rankings = [[name for name, _ in found] for found in (lexical, dense)]
        return reciprocal_rank(rankings, weights=[2 * part for part in weights])
    return (minmax if fusion == "minmax" else zscore)([lexical, dense], weights=weights)


def check_fusion(fusion: Fusion, dense_weight: float | None = None) -> None:
    """InputError unless there is such a fusion and it takes such a weight of dense search."""
    if fusion not in get_args(Fusion):
        known = ", ".join(get_args(Fusion))
        raise InputError(f"no fusion named {fusion!r}; there are: {known}")
    if dense_weight is None:
        return
    if fusion == "product":
        raise InputError("product takes no weight of dense search", remedy="use another fusion")
    if not 0 <= dense_weight <= 1:
        raise InputError(f"the weight of dense search is {dense_weight}", remedy="from 0 to 1")


def reciprocal_rank(
    rankings: Sequence[Sequence[str]], *, k: float = 60, weights: Sequence[float] | None = None
) -> list[Scored]:
    """Sum weight / (k + rank) over the rankings (lists of ids, best first; ranks start at 1).

    Source: Cormack, Clarke and Büttcher, "Reciprocal Rank Fusion" (SIGIR 2009). InputError for a
    repeated id, a negative k, or weights that do not fit.
    """
    if not 0 <= k < math.inf:
        raise InputError(f"k is {k}", remedy="k is 0 or more")
    parts = []
    for ranking in rankings:
        _check_ids(ranking)
        parts.append({name: 1 / (k + rank) for rank, name in enumerate(ranking, start=1)})
    return _weighted_sum(parts, [0.0] * len(parts), weights)


def minmax(
    lists: Sequence[Sequence[Scored]], *, weights: Sequence[float] | None = None
) -> list[Scored]:
    """Sum weight * (score - min) / (max - min) over the lists of (id, score).

    A document absent from a list gets 0 there. In a list whose scores are all equal every document
    gets 1, since being found is all that the list says. InputError for a repeated id, a score that
    is not finite, or weights that do not fit.
    """
    parts = [_to_unit(scored, constant=1.0) for scored in lists]
    return _weighted_sum(parts, [0.0] * len(parts), weights)


def zscore(
    lists: Sequence[Sequence[Scored]], *, weights: Sequence[float] | None = None
) -> list[Scored]:
    """Sum weight * (score - mean) / standard deviation (of the population) over the lists.

    A document absent from a list gets the least value that the list gives. In a list whose scores
    are all equal, or which is empty, every document gets 0, absent or not. InputError as `minmax`.
    """
    parts = [_to_z(scored) for scored in lists]
    return _weighted_sum(parts, [min(part.values(), default=0.0) for part in parts], weights)


def product(lexical: Sequence[Scored], dense: Sequence[Scored]) -> list[Scored]:
    """Multiply every document's dense score by its lexical score.

    A document absent from a list gets 0, and so does one whose score there is below 0: a better
    match in one list must not count against it. Where the lexical list has no score above 0, the
    dense scores stand alone, as they are.
    Source: Xu et al., "LaPraDoR" (arXiv 2203.06169), where a dense score below 0 is multiplied too.
    InputError for a repeated id or a score that is not finite.
    """
    words, meanings = _scores(lexical), _scores(dense)
    names = dict.fromkeys([*words, *meanings])
    if not any(score > 0 for score in words.values()):
        return best_first((name, meanings.get(name, 0.0)) for name in names)
    return best_first(
        (name, max(words.get(name, 0.0), 0.0) * max(meanings.get(name, 0.0), 0.0)) for name in names
    )


def _scores(scored: Sequence[Scored]) -> dict[str, float]:
    _check_ids(name for name, _ in scored)
    if not all(math.isfinite(score) for _, score in scored):
        raise InputError("the scores of a list are not finite")
    return dict(scored)


def _weighted_sum(
    parts: Sequence[Mapping[str, float]],
    absent: Sequence[float],
    weights: Sequence[float] | None,
) -> list[Scored]:
    factors = [1.0] * len(parts) if weights is None else list(weights)
    if len(factors) != len(parts):
        raise InputError(f"{len(factors)} weights were given for {len(parts)} lists")
    if not all(0 <= factor < math.inf for factor in factors):
        raise InputError(f"weights are {factors}", remedy="a weight is 0 or more, and finite")
    names = dict.fromkeys(name for part in parts for name in part)
    return best_first(
        (
            name,
            math.fsum(
                factor * part.get(name, least)
                for factor, part, least in zip(factors, parts, absent, strict=True)
            ),
        )
        for name in names
    )


def _to_unit(scored: Sequence[Scored], *, constant: float) -> dict[str, float]:
    _check_ids(name for name, _ in scored)
    scores = [score for _, score in scored]
    low, high = min(scores, default=0.0), max(scores, default=0.0)
    if not all(map(math.isfinite, scores)) or math.isinf(high - low):
        raise InputError("the scores of a list are not finite, or too far apart")
    if low == high:
        return dict.fromkeys((name for name, _ in scored), constant)
    return {name: (score - low) / (high - low) for name, score in scored}


def _to_z(scored: Sequence[Scored]) -> dict[str, float]:
    # Scaling first changes no z-score and keeps the squares from overflowing or vanishing.
    scaled = _to_unit(scored, constant=0.0)
    if not any(scaled.values()):
        return scaled
    mean = math.fsum(scaled.values()) / len(scaled)
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in scaled.values()) / len(scaled))
    return {name: (value - mean) / spread for name, value in scaled.items()}


def _check_ids(ids: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in ids:
        if name in seen:
            raise InputError(f"document {name!r} occurs twice in a list")
        seen.add(name)
