"""Pointwise methods: every document is judged by itself, all in one round."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from statistics import fmean, pstdev

from llmrank.errors import SpecError
from llmrank.plan import Grade, Likelihood, Plan, ask_all
from llmrank.rerank.order import by_score
from llmrank.types import Candidate, Ordering, Query

_SCALE = re.compile(r"(\d{1,3})(?:-(\d{1,3}))?", re.ASCII)
_LONG = re.compile(r"\d{2,}")
"""A number of several digits is seldom one token, and begins with the token of another."""


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


def grade(
    query: Query,
    candidates: Sequence[Candidate],
    *,
    labels: str = "4",
    score: str = "expected",
) -> Plan[Ordering]:
    """Graded relevance: the probability of each grade of a scale as the next token.

    `labels` is how many grades there are (4: the grades 3, 2, 1, 0), a range (1-5), or names from
    the best to the worst (high/some/none, worth 2, 1, 0). `score` is the `expected` grade, or
    `peak`: the probability of the best grade, not normalised over the grades. One round of n
    calls; a document without an answer keeps its place. Zhuang et al. 2023 (RG-S), arXiv
    2310.14122; the range 1-5 is InstUPR's.
    """
    values = scale(labels)
    if score not in ("expected", "peak"):
        raise SpecError(f"grade: score must be expected or peak, not {score!r}")
    names = tuple(values)
    answers = yield from ask_all([Grade(query, c.document, names) for c in candidates])
    scores: list[float | None] = []
    for grades in (answer.value for answer in answers):
        if grades is None:
            scores.append(None)
        elif score == "peak":
            scores.append(grades.probabilities[0] * grades.mass)
        else:
            worth = zip(values.values(), grades.probabilities, strict=True)
            scores.append(math.fsum(value * likely for value, likely in worth))
    return Ordering(by_score(scores), tuple(scores))


def scale(labels: str) -> dict[str, int]:
    """The grades that a text such as 4, 1-5 or high/some/none stands for, best first."""
    bounds = _SCALE.fullmatch(labels)
    if bounds is None:
        names = [name.strip() for name in labels.split("/")]
        found = {name: len(names) - place for place, name in enumerate(names, start=1)}
    else:
        low, high = (int(bounds[1]), int(bounds[2])) if bounds[2] else (0, int(bounds[1]) - 1)
        names = [str(value) for value in range(high, low - 1, -1)]
        found = {name: int(name) for name in names}
    alike = len({name.casefold() for name in names}) < len(names)
    if len(names) < 2 or alike or not all(names) or any(_LONG.fullmatch(name) for name in names):
        raise SpecError(
            "grade: labels must be 2 to 10, a range within 0-9 such as 1-5, or different names "
            f"such as high/some/none, not {labels!r}"
        )
    return found


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
