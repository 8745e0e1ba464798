"""Ranking by ratings: further calls go to documents whose place is uncertain."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist

from trueskill import Rating, TrueSkill

from llmrank.errors import SpecError
from llmrank.plan import Plan
from llmrank.rerank.blocks import Judged, check_by, ordered
from llmrank.rerank.order import by_score
from llmrank.types import Candidate, Ordering, Query


def acurank(
    query: Query,
    candidates: Sequence[Candidate],
    *,
    window: int = 20,
    k: int = 10,
    tolerance: float = 0.01,
    uncertain: int = 10,
    budget: int = 100,
    by: str = "text",
) -> Plan[Ordering]:
    """Rate documents by TrueSkill, and ask again while the top `k` are uncertain.

    Every document starts with TrueSkill's default rating. A first pass puts all of them in order,
    in windows over the first-stage order, and each answer updates the ratings of its window. Then
    a threshold is found above which `k` ratings lie by expectation. The documents that lie above
    it with a probability of more than `tolerance` and less than 1 - `tolerance` are asked about
    in the next pass, in windows over the order by mean rating. Once they are no more than
    `uncertain`, a last pass takes all with a probability above `tolerance` (the authors' code wants
    fewer than `uncertain`, which costs a tenth more calls). The score is the mean rating, ties
    going to the earlier first-stage rank.

    A pass is one round. For n <= window the first, of one call, is the last. No more than `budget`
    calls are made in all, and a window of one document takes none. Of an answer that names a part
    only, the others count as tied behind. A window without a usable answer leaves its ratings as
    they are; a pass without any ends the search, and a document that was in no usable answer keeps
    its place. Yoon et al. 2025 (AcuRank), arXiv 2505.18512, who start from ratings around the
    first-stage scores.
    """
    if window < 2 or min(k, uncertain, budget) < 1 or not 0 < tolerance < 0.5:
        raise SpecError(
            "acurank needs window >= 2, k, uncertain and budget >= 1 and 0 < tolerance < 0.5, "
            f"not {window, k, uncertain, budget, tolerance}"
        )
    check_by("acurank", by, window)
    skill = TrueSkill()
    ratings = [skill.create_rating() for _ in candidates]
    rated = [False] * len(candidates)
    chosen, last = list(range(len(candidates))), len(candidates) <= window
    while True:
        starts = range(0, len(chosen) - 1, window)[:budget]
        blocks = [chosen[start : start + window] for start in starts]
        budget -= len(blocks)
        answers = yield from ordered(query, candidates, blocks, by)
        usable = [judged for judged in answers if judged is not None and judged.named]
        for judged in usable:
            _rate(skill, ratings, judged)
            for i in judged.order:
                rated[i] = True
        if last or not budget or not usable:
            break
        chances = _above(ratings, k)
        ranked = sorted(range(len(candidates)), key=lambda i: (-ratings[i].mu, i))
        chosen = [i for i in ranked if tolerance < chances[i] < 1 - tolerance]
        if last := len(chosen) <= uncertain:
            chosen = [i for i in ranked if chances[i] > tolerance]
    scores = [rating.mu if known else None for rating, known in zip(ratings, rated, strict=True)]
    return Ordering(by_score(scores), tuple(scores))


def _rate(skill: TrueSkill, ratings: list[Rating], judged: Judged) -> None:
    """Update the ratings of the documents that an answer put in order."""
    teams = [(ratings[i],) for i in judged.order]
    places = [min(place, judged.named) for place in range(len(teams))]
    for i, (rating,) in zip(judged.order, skill.rate(teams, ranks=places), strict=True):
        ratings[i] = rating


def _above(ratings: Sequence[Rating], k: int) -> list[float]:
    """The probability of every rating to lie above the threshold that `k` exceed on average."""
    beliefs = [NormalDist(rating.mu, rating.sigma) for rating in ratings]
    low = min(belief.mean - 10 * belief.stdev for belief in beliefs)
    high = max(belief.mean + 10 * belief.stdev for belief in beliefs)
    for _ in range(60):
        middle = (low + high) / 2
        if sum(1 - belief.cdf(middle) for belief in beliefs) > k:
            low = middle
        else:
            high = middle
    return [1 - belief.cdf(low) for belief in beliefs]
