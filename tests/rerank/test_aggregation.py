from __future__ import annotations

from collections.abc import Sequence
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrank.rerank.aggregation import AGGREGATORS, Order, bradley_terry, elo, pagerank, wins
from llmrank.rerank.designs import design
from tests.effort import examples

NAMES = pytest.mark.parametrize("name", AGGREGATORS)


def _best_first(scores: Sequence[float]) -> list[int]:
    return sorted(range(len(scores)), key=lambda i: (-scores[i], i))


@st.composite
def orders(draw: st.DrawFn) -> tuple[list[Order], int]:
    """Orders of some of up to eight items, each with some of its places named."""
    n = draw(st.integers(2, 8))
    found: list[Order] = []
    for _ in range(draw(st.integers(0, 6))):
        items = draw(st.permutations(range(n)))[: draw(st.integers(1, n))]
        found.append((tuple(items), draw(st.integers(0, len(items)))))
    return found, n


@NAMES
@pytest.mark.parametrize("n", [2, 3, 10, 20, 50])
def test_a_full_block_gives_its_own_order(name: str, n: int) -> None:
    order = list(range(n))
    Random(n).shuffle(order)
    for blocks in ([(order, n)], [(order, n)] * 3):
        scores = AGGREGATORS[name](blocks, n)
        assert _best_first(scores.tolist()) == order
        assert len(set(scores.tolist())) == n


@NAMES
def test_no_orders_no_scores(name: str) -> None:
    for blocks in ([], [((2, 0, 1), 0)], [((1,), 1)]):
        assert np.isnan(AGGREGATORS[name](blocks, 3)).all()
    assert len(AGGREGATORS[name]([], 0)) == 0


@NAMES
@examples(60)
@given(orders())
def test_scores_are_finite_where_something_is_known(
    name: str, given: tuple[list[Order], int]
) -> None:
    blocks, n = given
    scores = AGGREGATORS[name](blocks, n)
    compared = {i for o, m in blocks if m and len(o) > 1 for i in o}
    assert {i for i in range(n) if np.isfinite(scores[i])} == compared
    assert {i for i in range(n) if np.isnan(scores[i])} == set(range(n)) - compared


@NAMES
@examples(60)
@given(orders(), st.randoms(use_true_random=False))
def test_names_of_items_do_not_matter(
    name: str, given: tuple[list[Order], int], random: Random
) -> None:
    blocks, n = given
    other = list(range(n))
    random.shuffle(other)
    renamed: list[Order] = [(tuple(other[i] for i in order), named) for order, named in blocks]
    scores, again = AGGREGATORS[name](blocks, n), AGGREGATORS[name](renamed, n)
    np.testing.assert_allclose(again[other], scores, atol=2e-9)


@NAMES
def test_equals_have_equal_scores(name: str) -> None:
    # The two halves of a block of which only the first was named, and a circle of three.
    half = AGGREGATORS[name]([((3, 0, 1, 2), 1)], 4)
    assert half[3] > half[0] == half[1] == half[2]
    if name != "elo":
        circle = AGGREGATORS[name]([((0, 1), 2), ((1, 2), 2), ((2, 0), 2)], 3)
        assert circle[0] == circle[1] == circle[2]


@NAMES
def test_perfect_blocks_bring_most_of_the_best_up(name: str) -> None:
    grades = list(range(60))
    overlap = []
    for seed in range(3):
        Random(seed).shuffle(grades)
        blocks = design("replicate", 60, 20, 4, Random(seed))
        judged = [(sorted(b, key=lambda i: -grades[i]), len(b)) for b in blocks]
        found = _best_first(AGGREGATORS[name](judged, 60).tolist())[:10]
        overlap.append(sum(grades[i] >= 50 for i in found))
    assert sum(overlap) / 3 >= 8


def test_wins() -> None:
    found = wins([((2, 0, 1), 3), ((1, 0, 2), 1)], 3)
    assert found.tolist() == [[0, 1, 0], [1, 0, 1], [1, 1, 0]]


@examples(100)
@given(orders())
def test_bradley_terry_is_where_the_posterior_is_flat(given: tuple[list[Order], int]) -> None:
    blocks, n = given
    beaten = wins(blocks, n)
    strength = np.nan_to_num(bradley_terry(blocks, n))
    chance = 1 / (1 + np.exp(strength[None, :] - strength[:, None]))
    gradient = (beaten - (beaten + beaten.T) * chance).sum(axis=1) + 0.5
    gradient -= 1 / (1 + np.exp(-strength))
    np.testing.assert_allclose(gradient, 0, atol=1e-6)


def test_bradley_terry_is_symmetric() -> None:
    forth = bradley_terry([((0, 1, 2, 3), 4)], 4)
    back = bradley_terry([((3, 2, 1, 0), 4)], 4)
    np.testing.assert_allclose(forth, -back, atol=1e-9)
    np.testing.assert_allclose(forth, back[::-1], atol=1e-9)
    assert (np.abs(bradley_terry([(range(30), 30)] * 50, 30)) < 100).all()


def test_pagerank_of_two() -> None:
    # The loser gives all it has to the winner, the winner half of it to each.
    winner, loser = pagerank([((0, 1), 2)], 2)
    assert winner == pytest.approx(0.075 + 0.85 * (loser + winner / 2), abs=1e-8)
    assert winner + loser == pytest.approx(1)


def test_elo_of_two() -> None:
    assert elo([((1, 0), 2)], 2).tolist() == [1484, 1516]
