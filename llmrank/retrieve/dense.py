"""Exact dense retrieval: inner products of query vectors with every document vector."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import llmrank.retrieve._folder as _folder
from llmrank.errors import InputError
from llmrank.retrieve._folder import Scored
from llmrank.types import Document

Vectors = NDArray[np.float32]

_KIND = "dense"
_CELLS = 1 << 24  # inner products held at one time: 64 MiB


@dataclass(frozen=True, slots=True, eq=False, repr=False)
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
        if batch < 1:
            raise InputError(f"batch is {batch}", remedy="embed at least one text at a time")
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
        return cls(tuple(ids), model, vectors, float(np.linalg.norm(vectors, axis=1).max()))

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
        step = max(1, _CELLS // len(self.ids))
        hits: list[list[Scored]] = []
        for start in range(0, len(queries), step):
            block = queries[start : start + step]
            rough = block @ self.vectors.T
            hits += [self._best(*pair, k) for pair in zip(block, rough, strict=True)]
        return hits

    def _best(self, query: Vectors, rough: Vectors, k: int) -> list[Scored]:
        """Rank by exact products the documents whose float32 product may be among the k best.

        A product of n terms in float32 is off by at most n units in the last place of the lengths'
        product (the classic bound for sums), and both sides of the comparison may be.
        """
        positions = np.arange(len(rough))
        if len(rough) > k:
            error = 2.0**-23 * len(query) * self._longest * float(np.linalg.norm(query))
            floor = float(np.partition(rough, -k)[-k]) - 2 * error
            positions = np.flatnonzero(rough >= floor)
        # Not a matrix product: BLAS may add up equal rows differently, and ties would break.
        exact = (self.vectors[positions] * query.astype(np.float64)).sum(axis=1)
        return _folder.top(exact.astype(np.float32), positions, self.ids, k)


def _batches(documents: Iterable[Document], size: int) -> Iterator[list[Document]]:
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
