"""A hybrid search whose weight is chosen on judged queries, by cross-validation."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from llmrank.api.first_stage import Parts
from llmrank.api.retriever import Retriever, Scored
from llmrank.errors import InputError
from llmrank.evaluate import MEASURES, Qrels, measure
from llmrank.types import Query

GRID = tuple(tenth / 10 for tenth in range(11))
FOLDS = 5
MEASURE = MEASURES[0]


class Tuned(NamedTuple):
    """What was found, by query id, and how: the weight of dense search that each fold got.

    `judged` is how many queries the weights were chosen on, all folds together.
    """

    found: dict[str, list[Scored]]
    weights: tuple[float, ...]
    judged: int


def search_tuned(
    retriever: Retriever,
    queries: Sequence[Query],
    qrels: Qrels,
    k: int = 100,
    *,
    folds: int = FOLDS,
    seed: int = 0,
) -> Tuned:
    """Search with the weight of dense search, from 0 to 1 by .1, that has the best nDCG@10.

    The judged queries are dealt into folds by chance, and each is searched with the weight that is
    best on the other folds, so that its own judgements have no part in it. Queries without
    judgements get the weight that is best on all judged ones. Of equal weights the one nearest to
    one half counts, then the smaller. InputError with fewer than two judged queries, or a fusion
    without weights.
    """
    if retriever.fusion == "product":
        raise InputError("product has no weight to tune", remedy="use another fusion")
    judged = sorted({query.id for query in queries if qrels.get(query.id)})
    if len(judged) < 2 or folds < 2:
        raise InputError(
            f"{len(judged)} judged queries in {folds} folds", remedy="tuning needs two of each"
        )
    random.Random(seed).shuffle(judged)
    parts = dict(zip((q.id for q in queries), retriever.parts(queries, k), strict=True))
    values = {weight: _values(retriever, parts, judged, qrels, weight) for weight in GRID}
    fold_of = {query: place % min(folds, len(judged)) for place, query in enumerate(judged)}
    weights = tuple(
        _best(values, [query for query in judged if fold_of[query] != fold])
        for fold in range(min(folds, len(judged)))
    )
    overall = _best(values, judged)
    chosen = {query: weights[fold_of[query]] if query in fold_of else overall for query in parts}
    found = {query: retriever.fuse(part, k, chosen[query]) for query, part in parts.items()}
    return Tuned(found, weights, len(judged))


def _values(
    retriever: Retriever,
    parts: Mapping[str, Parts],
    judged: Sequence[str],
    qrels: Qrels,
    weight: float,
) -> Mapping[str, float]:
    run = {query: retriever.fuse(parts[query], 10, weight) for query in judged}
    return measure(run, {query: qrels[query] for query in judged}, [MEASURE])[MEASURE]


def _best(values: Mapping[float, Mapping[str, float]], queries: Sequence[str]) -> float:
    return max(
        values,
        key=lambda weight: (
            math.fsum(values[weight][query] for query in queries),
            -abs(weight - 0.5),
            -weight,
        ),
    )
