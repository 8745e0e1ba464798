"""Choosing documents to write queries for: at random, or spread over the topics of a corpus."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from llmrank.errors import SpecError

Floats = NDArray[np.float32]
Places = NDArray[np.int64]

T = TypeVar("T")

_CELLS = 1 << 22  # numbers held at one time: 16 MiB
_STARTS = (4096, 20)  # vectors the first centroids are drawn from: at least, and per cluster
_POOL = 5  # documents drawn for each that is wanted, where they are to differ
_SAME = 1e-6  # 1 - cosine below which two vectors are taken for one, by the error of float32


def draw(items: Iterable[T], n: int, seed: int = 0) -> list[T]:
    """n of the items, every choice equally likely, in their order; one pass.

    Vitter 1985, algorithm R: memory holds the sample alone. All items where there are at most n.
    """
    _at_least_one("n", n)
    rng = Random(seed)
    kept: list[tuple[int, T]] = []
    for number, item in enumerate(items):
        if len(kept) < n:
            kept.append((number, item))
        elif (place := rng.randrange(number + 1)) < n:
            kept[place] = (number, item)
    return [item for _, item in sorted(kept, key=lambda pair: pair[0])]


def quotas(sizes: Sequence[int], n: int) -> list[int]:
    """How many of n documents each cluster gives: min(n, sum of the sizes) in all.

    Where n is at least the number of clusters that are not empty, each of these gives one, and the
    rest is shared in proportion to what each has left; what remains by rounding down goes one by
    one to the largest fractions, then the larger cluster, then the earlier. So none gives more than
    it has, and none is a document or more away from its share. For a smaller n the n largest
    clusters give one each.

    After DUQGen (Chandradevan et al. 2024, arXiv 2404.02489), which gives what remains to the
    largest clusters.
    """
    if n < 0 or any(size < 0 for size in sizes):
        raise SpecError("n and the sizes of the clusters must not be negative")
    filled = [i for i, size in enumerate(sizes) if size]
    found = [0] * len(sizes)
    if n <= len(filled):
        for i in sorted(filled, key=lambda i: -sizes[i])[:n]:
            found[i] = 1
        return found
    left = sum(sizes) - len(filled)
    rest = min(n - len(filled), left)
    parts: dict[int, int] = {}
    for i in filled:
        share, parts[i] = divmod(rest * (sizes[i] - 1), left) if left else (0, 0)
        found[i] = 1 + share
    missing = len(filled) + rest - sum(found)
    for i in sorted(filled, key=lambda i: (-parts[i], -sizes[i]))[:missing]:
        found[i] += 1
    return found


@dataclass(frozen=True, slots=True, eq=False)
class Clustering:
    """Vectors in clusters: the cluster of each, and its cosine to the centroid of that cluster.

    `centroids` has the shape (clusters, dimensions), every row of length 1.
    """

    labels: Places
    cosines: Floats
    centroids: Floats

    @property
    def sizes(self) -> list[int]:
        """How many vectors each cluster holds; 0 only where fewer vectors differ than clusters."""
        return [int(n) for n in np.bincount(self.labels, minlength=len(self.centroids))]


def kmeans(vectors: Floats, k: int, *, seed: int = 0, iterations: int = 25) -> Clustering:
    """Spherical k-means: k clusters by cosine, fewer where there are fewer vectors.

    `vectors` has the shape (n, dimensions); lengths do not matter, a vector of zeros has cosine 0
    to all. They are read block by block, a mapped file included. The first centroids are drawn by
    k-means++ (Arthur and Vassilvitskii 2007) from a sample, and a cluster that gets empty is given
    the vector that is farthest from its own centroid. Ends after so many iterations, or when no
    vector changes its cluster (Dhillon and Modha 2001). The same on one machine each time.
    """
    _at_least_one("k", k)
    _at_least_one("iterations", iterations)
    if len(vectors) == 0:
        none = np.zeros((0, vectors.shape[1] if vectors.ndim == 2 else 0), np.float32)
        return Clustering(np.zeros(0, np.int64), np.zeros(0, np.float32), none)
    centroids = _first_centroids(vectors, min(k, len(vectors)), _generator(seed))
    labels = np.full(len(vectors), -1)
    for _ in range(iterations):
        before = labels
        labels, cosines = _nearest(vectors, centroids)
        _refill(labels, cosines, len(centroids))
        if np.array_equal(before, labels):
            break
        centroids = _means(vectors, labels, centroids)
    return Clustering(labels, _cosines(vectors, labels, centroids), centroids)


def clusters(
    vectors: Floats,
    n: int,
    *,
    k: int,
    temperature: float = 1.0,
    diversity: float = 0.0,
    seed: int = 0,
) -> list[int]:
    """Places of n documents spread over k clusters of their vectors, ascending; all if n is enough.

    The clusters are those of `kmeans`; `sampled` says how they are drawn from.
    """
    _check_draw(n, temperature, diversity)
    if n >= len(vectors):
        return list(range(len(vectors)))
    found = kmeans(vectors, k, seed=seed)
    return sampled(vectors, found, n, temperature=temperature, diversity=diversity, seed=seed)


def sampled(
    vectors: Floats,
    found: Clustering,
    n: int,
    *,
    temperature: float = 1.0,
    diversity: float = 0.0,
    seed: int = 0,
) -> list[int]:
    """Places of n vectors, ascending: from every cluster its share by `quotas`.

    Inside a cluster they are drawn without replacement, with the probabilities
    softmax(cosine to the centroid / temperature). Cosines differ by little, so a temperature of 1
    draws nearly evenly and one of 0.05 takes what is typical. With a diversity above 0 five times
    as many are drawn, and of these are kept, one after another, the one with the largest

        (1 - diversity) * cosine to the centroid - diversity * largest cosine to one already kept

    Chandradevan et al. 2024 (DUQGen), arXiv 2404.02489; Gumbel top-k of Kool et al. 2019,
    arXiv 1903.06059; maximal marginal relevance of Carbonell and Goldstein 1998.
    """
    _check_draw(n, temperature, diversity)
    order = np.argsort(found.labels, kind="stable")
    ends = np.cumsum(found.sizes)
    chosen: list[int] = []
    for cluster, quota in enumerate(quotas(found.sizes, n)):
        if not quota:
            continue
        members = order[ends[cluster] - found.sizes[cluster] : ends[cluster]]
        keys = found.cosines[members] / temperature
        keys = keys + _generator(seed, cluster).gumbel(size=len(members))
        most = quota * _POOL if diversity else quota
        pool = members[np.argsort(-keys, kind="stable")[:most]]
        if diversity:
            near = found.cosines[pool]
            pool = pool[_diverse(_unit(vectors[pool]), near, quota, diversity)]
        chosen += pool.tolist()
    return sorted(chosen)


def _diverse(vectors: Floats, near: Floats, n: int, diversity: float) -> list[int]:
    """Places of n of the vectors by maximal marginal relevance, `near` being their relevance."""
    chosen: list[int] = []
    scores = near.astype(np.float64)
    nearest = np.full(len(vectors), -1.0)
    for _ in range(min(n, len(vectors))):
        best = int(scores.argmax())
        chosen.append(best)
        nearest = np.maximum(nearest, vectors @ vectors[best])
        scores = (1 - diversity) * near - diversity * nearest
        scores[chosen] = -np.inf
    return chosen


def _first_centroids(vectors: Floats, k: int, rng: np.random.Generator) -> Floats:
    most = max(_STARTS[0], _STARTS[1] * k)
    drawn = rng.choice(len(vectors), min(len(vectors), most), replace=False)
    pool = _unit(vectors[np.sort(drawn)])
    centroids = np.empty((k, pool.shape[1]), np.float32)
    far = np.ones(len(pool))
    for i in range(k):
        reach = np.cumsum(far if far.any() else np.ones(len(pool)))
        place = np.searchsorted(reach, rng.random() * reach[-1], side="right")
        centroids[i] = pool[min(int(place), len(pool) - 1)]
        distance = 1.0 - pool @ centroids[i]
        far = np.minimum(far, np.where(distance < _SAME, 0.0, distance))
    return centroids


def _nearest(vectors: Floats, centroids: Floats) -> tuple[Places, Floats]:
    """The centroid with the largest cosine to each vector, the first of equals, and that cosine."""
    labels = np.empty(len(vectors), np.int64)
    cosines = np.empty(len(vectors), np.float32)
    for part, block in _blocks(vectors, len(centroids)):
        found = block @ centroids.T
        labels[part] = found.argmax(axis=1)
        cosines[part] = found.max(axis=1)
    return labels, cosines


def _refill(labels: Places, cosines: Floats, k: int) -> None:
    """Give each empty cluster the farthest vector that is not alone, as long as any is apart."""
    sizes = np.bincount(labels, minlength=k)
    empty = [int(i) for i in np.flatnonzero(sizes == 0)]
    if not empty:
        return
    for place in np.argsort(cosines, kind="stable"):
        if not empty or cosines[place] > 1 - _SAME:
            return
        if sizes[labels[place]] > 1:
            sizes[labels[place]] -= 1
            labels[place] = empty.pop()


def _means(vectors: Floats, labels: Places, centroids: Floats) -> Floats:
    """The direction of the sum of every cluster; one without any stays where it is."""
    sums = np.zeros(centroids.shape)
    for part, block in _blocks(vectors, len(centroids)):
        order = np.argsort(labels[part], kind="stable")
        present, starts = np.unique(labels[part][order], return_index=True)
        sums[present] += np.add.reduceat(block[order], starts, axis=0, dtype=np.float64)
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    directed = sums / np.maximum(lengths, 1e-12)
    return np.where(lengths > _SAME, directed, centroids).astype(np.float32)


def _cosines(vectors: Floats, labels: Places, centroids: Floats) -> Floats:
    found = np.empty(len(vectors), np.float32)
    for part, block in _blocks(vectors, len(centroids)):
        found[part] = np.einsum("ij,ij->i", block, centroids[labels[part]])
    return found


def _blocks(vectors: Floats, k: int) -> Iterator[tuple[slice, Floats]]:
    """Blocks of unit vectors, small enough for a row of k numbers to each."""
    step = max(1, _CELLS // max(k, vectors.shape[1], 1))
    for start in range(0, len(vectors), step):
        part = slice(start, start + step)
        yield part, _unit(vectors[part])


def _unit(block: Floats) -> Floats:
    lengths = np.linalg.norm(block.astype(np.float32), axis=1, keepdims=True)
    return (block / np.where(lengths > 0, lengths, 1)).astype(np.float32)


def _generator(seed: int, *parts: int) -> np.random.Generator:
    return np.random.default_rng([seed % 2**64, *parts])


def _check_draw(n: int, temperature: float, diversity: float) -> None:
    _at_least_one("n", n)
    if not temperature > 0:
        raise SpecError(f"temperature must be above 0, not {temperature}")
    if not 0 <= diversity <= 1:
        raise SpecError(f"diversity must be from 0 to 1, not {diversity}")


def _at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise SpecError(f"{name} must be at least 1, not {value}")
