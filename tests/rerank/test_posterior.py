from __future__ import annotations

from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrank.rerank.adaptive import cross_sections
from llmrank.rerank.posterior import Evidence, Posterior
from tests.effort import examples

ORDERS = st.lists(st.permutations(range(6)).map(tuple), max_size=5)


@examples(50)
@given(ORDERS, st.integers(0, 6))
def test_the_posterior_is_at_its_maximum(orders: list[tuple[int, ...]], named: int) -> None:
    posterior = Posterior(np.linspace(1, 0, 6), 1.0, 1.25)
    evidence = [Evidence(order, named) for order in orders]
    posterior.observe(evidence)

    def objective(mean: Any) -> float:  # noqa: ANN401 - an array
        total = -float(((mean - np.linspace(1, 0, 6)) ** 2).sum()) / 2
        for order in orders:
            for place in range(min(named, 5)):
                rest = mean[list(order[place:])] / 1.25
                total += float(rest[0] - np.log(np.exp(rest).sum()))
        return total

    best = objective(posterior.mean)
    random = np.random.default_rng(0)
    assert all(
        objective(posterior.mean + 0.01 * random.standard_normal(6)) <= best + 1e-9
        for _ in range(20)
    )
    again = Posterior(np.linspace(1, 0, 6), 1.0, 1.25)
    again.observe(evidence[::-1])
    assert np.allclose(again.mean, posterior.mean, atol=1e-4)
    assert (posterior.spread <= 1.0 + 1e-9).all()


def test_what_is_foreseen_is_what_comes() -> None:
    posterior = Posterior(np.linspace(2, 0, 8), 1.15, 1.25)
    ahead = posterior.foreseen([0, 3, 5, 6])
    exact = Posterior(np.linspace(2, 0, 8), 1.15, 1.25)
    exact.observe([Evidence((0, 3, 5, 6), 4)])
    # The mean stays, so only the first step of the real update is foreseen.
    assert (ahead.spread[[0, 3, 5, 6]] < posterior.spread[[0, 3, 5, 6]]).all()
    assert np.allclose(ahead.spread[[1, 2, 4, 7]], posterior.spread[[1, 2, 4, 7]])
    assert np.abs(ahead.spread - exact.spread).max() < 0.1


def test_the_probability_of_the_top_is_calibrated() -> None:
    random = np.random.default_rng(1)
    said, came = [], []
    for seed in range(150):
        prior = -0.4 * np.log(np.arange(1, 41))
        truth = prior + 1.15 * random.standard_normal(40)
        posterior = Posterior(prior, 1.15)
        orders = []
        for block in cross_sections(40, 20, 2):
            drawn = truth[block] + random.gumbel(size=len(block))
            orders.append(Evidence(tuple(block[i] for i in np.argsort(-drawn)), len(block)))
        posterior.observe(orders)
        top = set(np.argsort(-truth)[:10].tolist())
        said.append(posterior.top(10, seed=seed))
        came.append([i in top for i in range(40)])
    chance, hit = np.concatenate(said), np.concatenate(came)
    for low in (0.0, 0.2, 0.4, 0.6, 0.8):
        inside = (chance >= low) & (chance <= low + 0.2)
        assert abs(chance[inside].mean() - hit[inside].mean()) < 0.06
    assert np.allclose([p.sum() for p in said], 10)


def plain(prior: Any, deviation: float, scale: float, found: list[Evidence]) -> tuple[Any, Any]:  # noqa: ANN401 - arrays
    """Mean and covariance by Newton steps with the inverse of the whole curvature."""
    mean, count = prior.copy(), len(prior)
    for _ in range(15):
        gradient, curvature = (prior - mean) / deviation**2, np.eye(count) / deviation**2
        for order, named, weight in found:
            for place in range(min(named, len(order) - 1)):
                rest = list(order[place:])
                chance = np.exp(mean[rest] / scale)
                chance /= chance.sum()
                gradient[order[place]] += weight / scale
                gradient[rest] -= weight * chance / scale
                bend = np.diag(chance) - np.outer(chance, chance)
                curvature[np.ix_(rest, rest)] += weight * bend / scale**2
        covariance = np.linalg.inv(curvature)
        step = covariance @ gradient
        mean = mean + step * min(1.0, 2.0 / max(float(np.abs(step).max()), 1e-9))
    return mean, covariance


@pytest.mark.parametrize("count", [3, 8, 40, 100])
def test_small_systems_give_what_the_whole_one_gives(count: int) -> None:
    prior = np.linspace(1, -1, count)
    for seed in range(3):
        random = Random(seed)
        sizes = [random.randrange(2, min(count, 20) + 1) for _ in range(seed * 4)]
        found = [
            Evidence(tuple(random.sample(range(count), size)), random.randrange(size + 1), weight)
            for size, weight in zip(sizes, [1.0, 0.5] * 9, strict=False)
        ]
        posterior = Posterior(prior, 1.15, 1.25)
        for evidence in found:
            posterior.observe([evidence])
        mean, covariance = plain(prior, 1.15, 1.25, found)
        assert posterior.mean == pytest.approx(mean, abs=1e-8)
        assert posterior.covariance == pytest.approx(covariance, abs=1e-8)
        assert posterior.spread == pytest.approx(np.sqrt(np.diag(covariance)), abs=1e-8)
