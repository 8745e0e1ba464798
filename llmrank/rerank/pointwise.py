"""Pointwise methods: every document is judged by itself, all in one round."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, pstdev

from llmrank.errors import SpecError
from llmrank.plan import Grade, Likelihood, Plan, ask_all
from llmrank.rerank.order import by_score
from llmrank.types import Candidate, Ordering, Query


def likelihood(
    query: Query,
    candidates: Sequence[Candidate],
    *,
    mean: bool = True,
    prior: float = 0.0,
) -> Plan[Ordering]:
    """Query likelihood: log p(query | document), per token with `mean`, else summed.

    With a `prior` above 0 the ranking is by z(likelihood) + prior * z(first-stage score), both
    standardised over the candidates of the query. Sachan et al. 2022 (UPR), arXiv 2204.07496; the
    mean is RankingGPT's, arXiv 2311.16720.
    """
    if not (math.isfinite(prior) and prior >= 0):
        raise SpecError(f"likelihood needs a finite prior >= 0, not {prior}")
    answers = yield from ask_all([Likelihood(query, c.document) for c in candidates])
    values = [answer.value for answer in answers]
    scores = [None if v is None else v.mean if mean else v.total for v in values]
    fused = _fuse(scores, [c.score for c in candidates], prior) if prior else scores
    return Ordering(by_score(fused), tuple(scores))


def yesno(query: Query, candidates: Sequence[Candidate]) -> Plan[Ordering]:
    """Relevance as p(yes) / (p(yes) + p(no)) of the next token.

    Nogueira et al. 2020, arXiv 2003.06713; Liang et al. 2022 (HELM), arXiv 2211.09110.
    """
    answers = yield from ask_all([Grade(query, c.document) for c in candidates])
    scores = [None if a.value is None else a.value.probabilities[0] for a in answers]
    return Ordering(by_score(scores), tuple(scores))


def _fuse(
    scores: Sequence[float | None], first_stage: Sequence[float], prior: float
) -> list[float | None]:
    """z(score) + prior * z(first-stage score); None where there is no score."""
    known = [i for i, score in enumerate(scores) if score is not None]
    model = _standardised([score for score in scores if score is not None])
    first = _standardised([first_stage[i] for i in known])
    fused: list[float | None] = [None] * len(scores)
    for i, mine, theirs in zip(known, model, first, strict=True):
        fused[i] = mine + prior * theirs
    return fused


def _standardised(values: Sequence[float]) -> list[float]:
    """Values with mean 0 and deviation 1; all 0 where they do not differ."""
    if len(values) < 2 or not (deviation := pstdev(values)):
        return [0.0] * len(values)
    centre = fmean(values)
    return [(value - centre) / deviation for value in values]
