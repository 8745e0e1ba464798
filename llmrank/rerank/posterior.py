"""A Gaussian posterior over document strengths, from orders, picks and pairs alike.

Every document has a latent strength with a Gaussian prior. An observed order of a block is a
Plackett-Luce draw; a pick is an order of which only the first places are known, a pair an order of
two. The posterior is the maximum a posteriori, with the inverse of the curvature there as its
covariance (Laplace), found by damped Newton steps. The model is Plackett's of 1975; Guiver and
Snelson 2009 approximate the same posterior by expectation propagation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_STEPS = 30
_CLOSE = 1e-6
_CHUNK = 32


class Evidence(NamedTuple):
    """An order of items, best first, of which the first `named` places are known.

    `weight` counts it as so many observations.
    """

    order: tuple[int, ...]
    named: int
    weight: float = 1.0


@dataclass
class Posterior:
    """Strengths of `len(prior)` items: `mean` of shape (n,) and `covariance` of shape (n, n)."""

    prior: Floats
    deviation: float
    scale: float = 1.0
    mean: Floats = field(init=False)
    _covariance: Floats | None = field(default=None, init=False)
    _evidence: list[Evidence] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self.mean = self.prior.copy()

    def observe(self, evidence: Sequence[Evidence]) -> None:
        """Take observations in; their order does not matter."""
        self._evidence += [found for found in evidence if found.named and len(found.order) > 1]
        self._covariance = None
        for _ in range(_STEPS):
            gradient, curvature = self._derivatives()
            step = self._solved(curvature, gradient[:, None])[:, 0]
            # The objective is concave, but a full step from far away can overshoot.
            longest = float(np.abs(step).max())
            self.mean += step * min(1.0, 2.0 / max(longest, _CLOSE))
            if longest < _CLOSE:
                break

    @property
    def covariance(self) -> Floats:
        """Inverse of the curvature at the mean: shape (n, n)."""
        if self._covariance is None:
            self._covariance = self._solved(self._derivatives()[1], np.eye(len(self.prior)))
        return self._covariance

    @property
    def spread(self) -> Floats:
        """Standard deviation of every strength: shape (n,)."""
        return np.asarray(np.sqrt(np.maximum(np.diag(self.covariance), 0.0)), dtype=np.float64)

    def foreseen(self, block: Sequence[int]) -> Posterior:
        """The posterior as if the likeliest order of a block had been seen, its mean kept."""
        items = sorted(block, key=lambda i: (-self.mean[i], i))
        _, bend = _plackett_luce(self.mean[items] / self.scale, len(items))
        bend = bend / self.scale**2
        # Woodbury: only a block-sized system has to be solved.
        part = self.covariance[:, items]
        inner = np.eye(len(items)) + bend @ part[items]
        ahead = Posterior(self.prior, self.deviation, self.scale)
        ahead.mean = self.mean
        ahead._covariance = self.covariance - part @ np.linalg.solve(inner, bend @ part.T)
        return ahead

    def top(self, m: int, draws: int = 400, seed: int = 0) -> Floats:
        """Probability of every item to be among the m strongest, by sampling: shape (n,)."""
        n = len(self.mean)
        if m >= n:
            return np.ones(n)
        root = np.linalg.cholesky(self.covariance + 1e-9 * np.eye(n))
        noise = np.random.default_rng(seed).standard_normal((draws, n))
        drawn = self.mean + noise @ root.T
        first = np.argpartition(-drawn, m - 1, axis=1)[:, :m]
        return np.asarray(np.bincount(first.ravel(), minlength=n) / draws, dtype=np.float64)

    def _derivatives(self) -> tuple[Floats, Floats]:
        """Gradient and negative Hessian of the log posterior at the mean."""
        gradient = (self.prior - self.mean) / self.deviation**2
        curvature = np.eye(len(self.prior)) / self.deviation**2
        for found in self._evidence:
            items = np.array(found.order)
            slope, bend = _plackett_luce(self.mean[items] / self.scale, found.named)
            gradient[items] += found.weight * slope / self.scale
            curvature[items[:, None], items] += found.weight * bend / self.scale**2
        return gradient, curvature

    def _solved(self, curvature: Floats, right: Floats) -> Floats:
        """The x with curvature @ x = right.

        Items that stand in one piece of evidence alone meet those of another only through items
        that stand in several, so that small systems suffice (Schur complement).
        """
        n = len(self.prior)
        pieces = [np.array(found.order) for found in self._evidence]
        times = np.bincount(np.concatenate([*pieces, np.arange(n)]), minlength=n) - 1
        linking = np.flatnonzero(times > 1)
        unseen = np.flatnonzero(times == 0)
        groups = [piece[times[piece] == 1] for piece in pieces]
        groups += [unseen[start : start + _CHUNK] for start in range(0, len(unseen), _CHUNK)]
        links = curvature[:, linking]
        found = np.hstack([links, right])
        for group in groups:
            found[group] = np.linalg.solve(curvature[group[:, None], group], found[group])
        found[linking] = 0.0
        bridge, solved = found[:, : len(linking)], found[:, len(linking) :]
        inner = links[linking] - links.T @ bridge
        known = np.linalg.solve(inner, right[linking] - links.T @ solved)
        solved -= bridge @ known
        solved[linking] = known
        return solved


def _plackett_luce(strengths: Floats, named: int) -> tuple[Floats, Floats]:
    """Gradient and negative Hessian of log P(order), for strengths that stand in that order.

    Only the first `named` choices are observed; the last of all is no choice.
    """
    n = len(strengths)
    choices = min(named, n - 1)
    weights = np.exp(strengths - strengths.max())
    # Row p: the chance of every item to be the p-th choice; those chosen before are out.
    chance = np.triu(np.broadcast_to(weights, (n, n)))[:choices]
    chance = chance / chance.sum(axis=1, keepdims=True)
    expected = chance.sum(axis=0)
    slope = (np.arange(n) < choices) - expected
    return slope, np.diag(expected) - chance.T @ chance
