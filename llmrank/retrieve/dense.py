"""Exact dense retrieval: inner products of query vectors with every document vector."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import llmrank.retrieve._folder as _folder
from llmrank.errors import InputError
from llmrank.retrieve._folder import Scored
from llmrank.retrieve._growing import Growing
from llmrank.types import Document

Vectors = NDArray[np.float32]

_KIND = "dense"
_CELLS = 1 << 24  # inner products held at one time: 64 MiB
_QUERIES = 1024  # searched at one time: many, as each time all documents are read
_GROUPS = 16  # groups of documents, for each that is wanted


@dataclass(frozen=True, eq=False, repr=False)
class DenseIndex:
    """The vectors of a corpus, shape (documents, dimensions), and the model that made them."""

    ids: tuple[str, ...]
    model: str
    vectors: Vectors
    _longest: float

    @classmethod
    def build(
        cls,
        documents: Iterable[Document],
        embed: Callable[[Sequence[str]], Vectors],
        *,
        model: str,
        batch: int = 64,
    ) -> DenseIndex:
        """Embed title and text of every document, `batch` at a time, reading each once.

        `embed` maps n texts to an array of shape (n, dimensions). InputError if there is no
        document, an id comes twice, or an array has another shape or a value that is not finite.
        """
        ids: list[str] = []
        blocks: list[Vectors] = []
        for group in _batches(_folder.once_each(documents), batch):
            ids += [document.id for document in group]
            block = _matrix(embed([document.contents for document in group]))
            expected = (len(group), blocks[0].shape[1] if blocks else block.shape[1])
            if block.shape != expected:
                raise InputError(f"vectors of shape {block.shape} came where {expected} was due")
            blocks.append(block)
        vectors = np.concatenate(blocks)
        return cls(tuple(ids), model, vectors, _longest(vectors))

    @classmethod
    def build_in(
        cls,
        folder: str | Path,
        documents: Iterable[Document],
        embed: Callable[[Sequence[str]], Vectors],
        *,
        model: str,
        batch: int = 64,
    ) -> DenseIndex:
        """`build` an index straight into a folder, in constant memory but for the ids, and open it.

        Until the index is whole it grows in a folder beside this one, its name with `.part` at the
        end. A build that was ended goes on from there: what was embedded is not embedded again, as
        far as the documents are the same. An index in `folder` is replaced in the end. InputError
        also where another model or another process is at work there.
        """
        folder = Path(folder)
        with Growing(folder.with_name(f"{folder.name}.part"), model) as growing:
            for group in _batches(growing.beyond(_folder.once_each(documents)), batch):
                growing.add(group, _matrix(embed([document.contents for document in group])))
            vectors = growing.finish()
            about = {"kind": _KIND, "model": model, "longest": _longest(vectors)}
            del vectors
            _folder.write(folder, about, growing.ids, growing.hand_over)
        return cls.load(folder)

    def save(self, folder: str | Path) -> None:
        """Write the index to a folder, at once or not at all; an index there is replaced.

        InputError if the folder holds something else.
        """

        def fill(new: Path) -> None:
            np.save(new / "vectors.npy", self.vectors, allow_pickle=False)

        about = {"kind": _KIND, "model": self.model, "longest": self._longest}
        _folder.write(Path(folder), about, self.ids, fill)

    @classmethod
    def load(cls, folder: str | Path) -> DenseIndex:
        """Open a saved index, its vectors memory-mapped; InputError if it is not whole."""
        stored = _folder.read(Path(folder), _KIND)
        vectors = stored.array("vectors", np.float32, axes=2)
        if len(vectors) != len(stored.ids):
            raise InputError("the files do not belong together", path=folder)
        return cls(stored.ids, stored.value("model", str), vectors, stored.value("longest", float))

    def __len__(self) -> int:
        return len(self.ids)

    def of(self, ids: Sequence[str]) -> Vectors:
        """The vectors of these documents, shape (len(ids), dimensions); `InputError` for others."""
        places = _folder.places(ids, self._numbers)
        return np.asarray(self.vectors[places], dtype=np.float32)

    def score(self, vector: Vectors, ids: Sequence[str]) -> list[float]:
        """The scores of these documents for a query vector, as `search` gives them."""
        scores: list[float] = _products(self.of(ids), _matrix(vector.reshape(1, -1))[0]).tolist()
        return scores

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.ids)}

    def search(self, vectors: Vectors, k: int, *, model: str) -> list[list[Scored]]:
        """The k best documents for each query vector: score falling, then id falling.

        `vectors` has shape (queries, dimensions) and comes from `model`; InputError if that is not
        the index's model or the dimensions differ. A score is the inner product in float64,
        rounded to float32: it depends neither on the other queries nor on where a document stands.
        """
        _folder.check_depth(k)
        if model != self.model:
            raise InputError(
                f"the queries are embedded with {model!r}, the index with {self.model!r}",
                remedy="use one model for both",
            )
        queries = _matrix(vectors)
        if queries.shape[1] != self.vectors.shape[1]:
            raise InputError(
                f"query vectors have {queries.shape[1]} dimensions, "
                f"the index has {self.vectors.shape[1]}"
            )
        hits: list[list[Scored]] = []
        for start in range(0, len(queries), _QUERIES):
            hits += self._search(queries[start : start + _QUERIES], k)
        return hits

    def _search(self, queries: Vectors, k: int) -> list[list[Scored]]:
        """Rank by exact products the documents whose float32 product may be among the k best.

        A product of n terms in float32 is off by at most n units in the last place of the lengths'
        product (the classic bound for sums), and both sides of the comparison may be.
        """
        error = 2.0**-23 * queries.shape[1] * self._longest * np.linalg.norm(queries, axis=1)
        nearest = [_Nearest(k, 2 * bound) for bound in error.tolist()]
        vectors = np.asarray(self.vectors)  # indexing a memory map itself is slow
        step = max(1, _CELLS // len(queries))
        for start in range(0, len(vectors), step):
            rough = queries @ vectors[start : start + step].T
            for found, products in zip(nearest, rough, strict=True):
                found.add(products, start)
        return [
            _folder.top(_products(vectors[at], query), at, self.ids, k)
            for query, at in zip(queries, (found.positions() for found in nearest), strict=True)
        ]


class _Nearest:
    """The documents whose product with a query is among the k best, or at most `slack` below."""

    def __init__(self, k: int, slack: float) -> None:
        self._k, self._slack = k, slack
        self._positions: list[NDArray[np.intp]] = []
        self._products: list[Vectors] = []
        self._count = 0
        self._floor = -np.inf

    def add(self, products: Vectors, start: int) -> None:
        """Take the products of the documents from `start` on into account."""
        if self._count < self._k <= len(products):
            self._floor = _at_most_kth(products, self._k) - self._slack
        (near,) = (products >= self._floor).nonzero()
        if len(near):
            self._positions.append(near + start)
            self._products.append(products[near])
            self._count += len(near)
        if self._count > 2 * self._k:
            self.positions()

    def positions(self) -> NDArray[np.intp]:
        """Where they stand among all documents so far."""
        positions, products = np.concatenate(self._positions), np.concatenate(self._products)
        if len(positions) > self._k:
            self._floor = float(np.partition(products, -self._k)[-self._k]) - self._slack
            kept = products >= self._floor
            positions, products = positions[kept], products[kept]
        self._positions, self._products, self._count = [positions], [products], len(positions)
        return positions


def _at_most_kth(values: Vectors, k: int) -> float:
    """A lower bound of the k-th largest value, mostly close to it, and itself where values are few.

    The k-th largest of the maxima of groups is one, as k groups have a value that high; it is found
    several times as fast as the k-th largest of all.
    """
    groups = _GROUPS * k
    if len(values) >= 4 * groups:
        values = values[: len(values) // groups * groups].reshape(-1, groups).max(axis=0)
    return float(np.partition(values, -k)[-k])


def _products(vectors: Vectors, query: Vectors) -> Vectors:
    # Not a matrix product: BLAS may add up equal rows differently, and ties would break.
    exact: NDArray[np.float64] = (vectors * query.astype(np.float64)).sum(axis=1)
    return exact.astype(np.float32)


def _longest(vectors: Vectors) -> float:
    step = max(1, _CELLS // vectors.shape[1])
    return max(
        float(np.linalg.norm(vectors[start : start + step], axis=1).max())
        for start in range(0, len(vectors), step)
    )


def _batches(documents: Iterable[Document], size: int) -> Iterator[list[Document]]:
    if size < 1:
        raise InputError(f"batch is {size}", remedy="embed at least one text at a time")
    rest = iter(documents)
    while group := list(islice(rest, size)):
        yield group


def _matrix(vectors: Vectors) -> Vectors:
    matrix = np.asarray(vectors, dtype=np.float32)
    if matrix.ndim != 2 or not matrix.shape[1]:
        raise InputError(f"vectors have the shape {matrix.shape}, not (texts, dimensions)")
    if not np.isfinite(matrix).all():
        raise InputError("a vector has a value that is not finite")
    return matrix
