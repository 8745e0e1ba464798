"""Weights of terms: divided by their length, cut to the largest, added up."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping

Weights = Mapping[str, float]


def divided(weights: Weights, norm: int) -> dict[str, float]:
    """Weights above 0 at length 1: over their sum (norm 1), or the root of that of their squares.

    None stay none.
    """
    length = math.fsum(weight**norm for weight in weights.values()) ** (1 / norm)
    return {term: weight / length for term, weight in weights.items()}


def largest(weights: Weights, n: int) -> dict[str, float]:
    """The n largest weights, of equal ones those first in the alphabet."""
    return dict(sorted(weights.items(), key=lambda item: (-item[1], item[0]))[:n])


def total(parts: Iterable[tuple[float, Weights]]) -> dict[str, float]:
    """The sum of the weights of every term, each times the factor of its part."""
    found = defaultdict[str, float](float)
    for factor, weights in parts:
        for term, weight in weights.items():
            found[term] += factor * weight
    return dict(found)
