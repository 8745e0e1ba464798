from __future__ import annotations

from math import ceil, isqrt
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrank.errors import SpecError
from llmrank.rerank.designs import DESIGNS, design
from tests.effort import examples, sizes

SIZES = [2, 3, 4, 7, 10, 20]
COUNTS = sizes()


def _cover(blocks: list[list[int]], n: int) -> list[int]:
    return [sum(item in block for block in blocks) for item in range(n)]


def _reached(blocks: list[list[int]]) -> set[int]:
    """The items that can be reached from the first block."""
    found, waiting = set(blocks[0]), [set(block) for block in blocks[1:]]
    while near := [block for block in waiting if block & found]:
        waiting = [block for block in waiting if not block & found]
        found = found.union(*near)
    return found


def _check(blocks: list[list[int]], n: int, k: int, r: int) -> None:
    assert all(2 <= len(block) <= k for block in blocks)
    assert all(block == sorted(set(block)) for block in blocks)
    if n > 1:
        assert _reached(blocks) == set(range(n))
    if n > k:
        assert min(_cover(blocks, n)) >= r
    else:
        assert blocks == ([list(range(n))] if n > 1 else [])


@pytest.mark.parametrize("k", SIZES)
@pytest.mark.parametrize("r", [2, 5])
def test_replicate(k: int, r: int) -> None:
    for n in COUNTS:
        blocks = design("replicate", n, k, r, Random(n))
        _check(blocks, n, k, r)
        if n > k:
            assert len(blocks) == ceil(n * r / k)
            sizes = {len(block) for block in blocks}
            assert max(sizes) - min(sizes) <= 1
            more = sum(_cover(blocks, n)) - n * r
            assert more == (k == 2 and n * r % 2)


@pytest.mark.parametrize("k", SIZES)
@pytest.mark.parametrize("r", [2, 3])
def test_random(k: int, r: int) -> None:
    for n in [*range(2 * k + 2), *range(2 * k + 2, 131, 11)]:
        blocks = design("random", n, k, r, Random(n))
        _check(blocks, n, k, r)
        if n > k:
            assert len(blocks) == ceil(n * r / k)
            assert {len(block) for block in blocks} == {k}


@pytest.mark.parametrize("k", SIZES)
def test_latin(k: int) -> None:
    for n in COUNTS:
        side = isqrt(max(0, n - 1)) + 1
        if n > k and side > k:
            with pytest.raises(SpecError, match=f"k >= {side}"):
                design("latin", n, k, 2, Random(n))
            continue
        blocks = design("latin", n, k, 2, Random(n))
        _check(blocks, n, k, 2)
        if n > k:
            assert len(blocks) == 2 * side - (n in (3, 5))
            assert set(_cover(blocks, n)) == {2}
            sizes = {len(block) for block in blocks}
            assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("k", SIZES)
def test_triangular(k: int) -> None:
    for n in COUNTS:
        v = next(v for v in range(2, 30) if v * (v - 1) // 2 >= n)
        if n > k and v - 1 > k:
            with pytest.raises(SpecError, match=f"k >= {v - 1}"):
                design("triangular", n, k, 2, Random(n))
            continue
        blocks = design("triangular", n, k, 2, Random(n))
        _check(blocks, n, k, 2)
        if n > k:
            assert len(blocks) == v
            assert set(_cover(blocks, n)) == {2}
            shared = [len({*a} & {*b}) for i, a in enumerate(blocks) for b in blocks[:i]]
            assert max(shared) == 1


@pytest.mark.parametrize("name", ["replicate", "random"])
def test_designs_that_fell_apart_are_joined(name: str) -> None:
    # Random cycles over eight items and blocks of two would often be several.
    for n, k in ((8, 2), (9, 2), (7, 3), (39, 20), (9, 4)):
        for seed in range(60):
            _check(design(name, n, k, 2, Random(seed)), n, k, 2)


@examples(80)
@given(
    st.sampled_from(["replicate", "random"]),
    st.integers(0, 60),
    st.integers(2, 25),
    st.integers(2, 6),
    st.integers(),
)
def test_any_size(name: str, n: int, k: int, r: int, seed: int) -> None:
    blocks = design(name, n, k, r, Random(seed))
    _check(blocks, n, k, r)
    assert blocks == design(name, n, k, r, Random(seed))


@pytest.mark.parametrize("name", ["replicate", "random"])
@pytest.mark.parametrize("n", [21, 39, 100])
def test_blocks_that_cannot_share_items_are_refused(name: str, n: int) -> None:
    with pytest.raises(SpecError, match=f"use r >= 2 or k >= {n}"):
        design(name, n, 20, 1, Random(0))


@pytest.mark.parametrize("name", DESIGNS)
def test_one_block_of_all(name: str) -> None:
    for n in range(21):
        _check(design(name, n, 20, 1, Random(0)), n, 20, 1)


@pytest.mark.parametrize(
    ("name", "k", "r"), [("squares", 20, 2), ("latin", 1, 2), ("random", 5, 0)]
)
def test_what_is_no_design(name: str, k: int, r: int) -> None:
    with pytest.raises(SpecError):
        design(name, 0, k, r, Random(0))
