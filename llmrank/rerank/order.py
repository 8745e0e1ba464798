"""What all methods share: orders from scores, and candidates a method did not look at."""

from __future__ import annotations

from collections.abc import Sequence


def by_score(scores: Sequence[float | None]) -> tuple[int, ...]:
    """Positions, highest score first; ties stay in the order they came in.

    A position without a score keeps its place: the others are ordered around it, so a failed call
    moves nobody but is never read as a low score.
    """
    scored = [i for i, score in enumerate(scores) if score is not None]
    ranked = iter(sorted(scored, key=lambda i: (-(scores[i] or 0.0), i)))
    return tuple(i if score is None else next(ranked) for i, score in enumerate(scores))
