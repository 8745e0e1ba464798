"""Block designs: which of n items are shown together in calls of at most k.

Every design covers every item, shows no item twice in a block and hangs together: from any item
one can come to any other over blocks that share an item. Without that no order of all follows from
the orders of the blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from math import ceil, isqrt
from random import Random
from typing import NamedTuple

from llmrank.errors import SpecError

Blocks = list[list[int]]


def design(name: str, n: int, k: int, r: int, rng: Random) -> Blocks:
    """Blocks of at most k of the items 0..n-1, each block in ascending order.

    Every item is in r blocks at least, with `latin` and `triangular` in two. One block holds all
    items when n <= k; no block is made for fewer than two items. `SpecError` where the design
    cannot exist.
    """
    if name not in DESIGNS:
        raise SpecError(f"no block design named {name!r}; there are: {', '.join(DESIGNS)}")
    if k < 2 or r < 1:
        raise SpecError(f"blocks need k >= 2 and r >= 1, not {k, r}")
    if n <= k:
        return [list(range(n))] if n > 1 else []
    blocks = DESIGNS[name](n, k, r, rng)
    return [sorted(block) for block in blocks]


def _replicate(n: int, k: int, r: int, rng: Random) -> Blocks:
    """ceil(n * r / k) blocks whose sizes differ by at most one, every item in r of them.

    With k = 2 and n * r odd one item is in r + 1, as a block of one item would say nothing.
    """
    count = _count(n, k, r)
    slots = max(n * r, 2 * count)
    blocks: Blocks = []
    left: list[int] = []
    for index in range(count):
        size = slots // count + (index < slots % count)
        block, left = left[:size], left[size:]
        if len(block) < size:
            # A shuffle of all items is used up: the next one begins with items not in the block.
            fresh = _shuffled((i for i in range(n) if i not in block), rng)
            missing = size - len(block)
            left = _shuffled([*block, *fresh[missing:]], rng)
            block = block + fresh[:missing]
        blocks.append(block)
    return _connected(blocks)


def _random(n: int, k: int, r: int, rng: Random) -> Blocks:
    """ceil(n * r / k) random blocks of k; items in excess give way to those in fewer than r."""
    blocks = [rng.sample(range(n), k) for _ in range(_count(n, k, r))]
    cover = [0] * n
    for item in (i for block in blocks for i in block):
        cover[item] += 1
    for item in _shuffled(range(n), rng):
        while cover[item] < r:
            # There is such a place: all places are enough for r each, and an item that stands in
            # more than r blocks stands in one without an item that stands in fewer.
            places = [
                (block, place)
                for block in blocks
                if item not in block
                for place, other in enumerate(block)
                if cover[other] > r
            ]
            block, place = rng.choice(places)
            cover[block[place]] -= 1
            cover[item] += 1
            block[place] = item
    return _connected(blocks)


def _latin(n: int, k: int, r: int, rng: Random) -> Blocks:
    """Rows and columns of a square that is filled along its diagonals, so all are equally long."""
    side = isqrt(n - 1) + 1
    if side > k:
        raise SpecError(
            f"a latin square of {n} items has rows of {side}, more than k = {k}; "
            f"use k >= {side} or the design replicate"
        )
    rows: Blocks = [[] for _ in range(side)]
    columns: Blocks = [[] for _ in range(side)]
    for place, item in enumerate(_shuffled(range(n), rng)):
        rows[place % side].append(item)
        columns[(place + place // side) % side].append(item)
    # Of three or of five items a row and a column hold one each: these two make a block.
    alone = [block[0] for block in (*rows, *columns) if len(block) == 1]
    return [block for block in (*rows, *columns, alone) if len(block) > 1]


def _triangular(n: int, k: int, r: int, rng: Random) -> Blocks:
    """v blocks, every item the meeting of two of them: any two blocks share at most one item."""
    v = (isqrt(8 * n - 7) + 3) // 2
    if v - 1 > k:
        raise SpecError(
            f"a triangular design of {n} items has blocks of {v - 1}, more than k = {k}; "
            f"use k >= {v - 1} or the design replicate"
        )
    # Near pairs first: they go round all blocks, so what lacks of the last pairs leaves no gap.
    pairs = sorted(
        ((a, b) for a in range(v) for b in range(a)),
        key=lambda pair: (min(pair[0] - pair[1], v - pair[0] + pair[1]), pair),
    )
    blocks: Blocks = [[] for _ in range(v)]
    for item, (a, b) in zip(_shuffled(range(n), rng), pairs, strict=False):
        blocks[a].append(item)
        blocks[b].append(item)
    return blocks


DESIGNS: Mapping[str, Callable[[int, int, int, Random], Blocks]] = {
    "replicate": _replicate,
    "latin": _latin,
    "triangular": _triangular,
    "random": _random,
}


def _count(n: int, k: int, r: int) -> int:
    if r < 2:
        raise SpecError(
            f"with r = 1 the blocks of {n} items share none, so no order of all follows; "
            f"use r >= 2 or k >= {n}"
        )
    return ceil(n * r / k)


def _shuffled(items: Iterable[int], rng: Random) -> list[int]:
    found = list(items)
    rng.shuffle(found)
    return found


class _Part(NamedTuple):
    """Blocks that hang together, and a place in one that they do not need for that."""

    blocks: Blocks
    spare: tuple[int, int]


def _connected(blocks: Blocks) -> Blocks:
    """Swap items of separate parts until there is one part.

    Blocks and items are a graph in which an item is linked to its blocks. All items being in two
    blocks and all blocks holding two items, every part has a cycle and so a link to spare; to swap
    that for any link of another part joins the two.
    """
    while len(parts := _parts(blocks)) > 1:
        (block, place), other = parts[0].spare, parts[1].blocks[0]
        blocks[block][place], other[0] = other[0], blocks[block][place]
    return blocks


def _parts(blocks: Blocks) -> list[_Part]:
    """The parts of the graph, by their first block."""
    above: dict[tuple[str, int], tuple[str, int]] = {}

    def root(node: tuple[str, int]) -> tuple[str, int]:
        while (up := above.setdefault(node, node)) != node:
            above[node] = above.setdefault(up, up)
            node = above[node]
        return node

    closing = []
    for index, block in enumerate(blocks):
        for place, item in enumerate(block):
            mine, theirs = root(("block", index)), root(("item", item))
            if mine == theirs:
                closing.append((index, place))
            above[theirs] = mine
    spare = {root(("block", index)): (index, place) for index, place in closing}
    found: dict[tuple[str, int], Blocks] = {}
    for index, block in enumerate(blocks):
        found.setdefault(root(("block", index)), []).append(block)
    return [_Part(members, spare[node]) for node, members in found.items()]
