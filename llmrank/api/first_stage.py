"""A retriever as what augmentations search with and take feedback from."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from llmrank.errors import InputError
from llmrank.expand import Expansion, Kind, Scored, View
from llmrank.plan import Vectors
from llmrank.retrieve import ANALYZERS, BM25Index, DenseIndex, reciprocal_rank
from llmrank.types import Document

if TYPE_CHECKING:
    from llmrank.api.retriever import Retriever


SEARCHES: Mapping[str, frozenset[Kind]] = {
    "bm25": frozenset({"bm25"}),
    "dense": frozenset({"dense"}),
    "hybrid": frozenset({"bm25", "dense"}),
}
"""First stages, and what each searches by."""


def searched_by(first_stage: str) -> frozenset[Kind]:
    """What a first stage searches by; `InputError` for an unknown name."""
    if first_stage not in SEARCHES:
        known = ", ".join(SEARCHES)
        raise InputError(f"no first stage named {first_stage!r}; there are: {known}")
    return SEARCHES[first_stage]


class Indexed:
    """The indexes of a retriever; `depth` is how many documents are wanted in the end.

    Views are fused as an expansion says, but the plain pair of a BM25 and a dense view as the
    retriever fuses the two, so that an expansion is compared with nothing but its own query.
    """

    def __init__(self, retriever: Retriever, depth: int) -> None:
        self._retriever, self.depth = retriever, depth

    @property
    def kinds(self) -> frozenset[Kind]:
        """What it searches by."""
        found: dict[Kind, object] = {"bm25": self._retriever.bm25, "dense": self._retriever.dense}
        return frozenset(kind for kind, index in found.items() if index is not None)

    @property
    def size(self) -> int:
        """Number of documents."""
        return len(self._bm25 if "bm25" in self.kinds else self._dense)

    def check(self, encoder: str, *, texts: bool) -> None:
        """Raise `InputError` where another model than `encoder` made the vectors.

        With `texts` also where the texts of the documents are not known.
        """
        if "dense" in self.kinds:
            check_encoder(self._dense, encoder)
        if texts:
            self._retriever.check_texts()

    @property
    def _bm25(self) -> BM25Index:
        if self._retriever.bm25 is None:
            raise InputError("this augmentation needs a BM25 index", remedy="--first-stage bm25")
        return self._retriever.bm25

    @property
    def _dense(self) -> DenseIndex:
        if self._retriever.dense is None:
            raise InputError("this augmentation needs vectors", remedy="--first-stage dense")
        return self._retriever.dense

    def search(self, expansion: Expansion, k: int) -> list[Scored]:
        """Ids and scores of the k best documents, score falling, then id falling."""
        if expansion.ranking is not None:
            return list(expansion.ranking[:k])
        views = expansion.views
        if [(view.vector is None, view.weight) for view in views] == [(True, 1.0), (False, 1.0)]:
            return self._paired(views[0], views[1], k)
        found = [self._viewed(view, k) for view in views]
        if len(found) < 2:
            return found[0] if found else []
        rankings = [[document for document, _ in one] for one in found]
        weights = [view.weight for view in views]
        return reciprocal_rank(rankings, k=expansion.constant, weights=weights)[:k]

    def _paired(self, words: View, meaning: View, k: int) -> list[Scored]:
        """One BM25 search and one dense search, fused as the retriever does it."""
        found = self._viewed(words, k), self._viewed(meaning, k)
        vector = np.asarray(meaning.vector, dtype=np.float32)[0]
        parts = self._retriever.completed(found, self._weights(words), vector)
        return self._retriever.fuse(parts, k, self._retriever.dense_weight)

    def _viewed(self, view: View, k: int) -> list[Scored]:
        if view.vector is None:
            return self._bm25.search(self._weights(view), k)
        vector = np.asarray(view.vector, dtype=np.float32)
        return self._dense.search(vector, k, model=self._dense.model)[0]

    def _weights(self, view: View) -> Mapping[str, float]:
        weights = defaultdict[str, float](float, view.terms)
        for text, count in view.texts:
            for term in self.analyze(text):
                weights[term] += count
        return weights

    def analyze(self, text: str) -> list[str]:
        """The terms of a text as BM25 counts them."""
        return ANALYZERS[self._bm25.analyzer](text)

    def frequency(self, term: str) -> int:
        """In how many documents an analysed term is."""
        return self._bm25.frequency(term)

    def counts(self, document_id: str) -> Mapping[str, int]:
        """How often every analysed term is in a document."""
        return self._bm25.counts(document_id)

    def vectors(self, ids: Sequence[str]) -> Vectors:
        """The vectors of documents, shape (len(ids), dimensions)."""
        return self._dense.of(ids)

    def document(self, document_id: str) -> Document:
        """A document with its text; `InputError` where the index knows no texts."""
        return self._retriever.document(document_id)


def check_encoder(index: DenseIndex, encoder: str) -> None:
    """`InputError` where an index was made by another model than queries are embedded with."""
    if index.model != encoder:
        raise InputError(
            f"the index has vectors of {index.model!r}, and queries are embedded with {encoder!r}",
            remedy="name the encoder that the index was built with, or build another index",
        )
