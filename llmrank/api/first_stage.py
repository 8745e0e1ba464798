"""The indexes of a retriever, as augmentations search them and take feedback from them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from llmrank.errors import InputError
from llmrank.expand import Expansion, Kind, Scored, View
from llmrank.plan import Vectors
from llmrank.retrieve import ANALYZERS, BM25Index, DenseIndex, Fusion, hybrid, reciprocal_rank
from llmrank.types import Document

Parts = tuple[list[Scored], list[Scored]]
"""What BM25 and dense search found for one query."""

GIVE_TEXTS = "give the documents as a list, not an index alone"

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


@dataclass(frozen=True, slots=True)
class Indexed:
    """Indexes of a corpus, either of which may be absent, and the texts that are known.

    `depth` is how many documents are wanted in the end. Views are fused as an expansion says, but
    the plain pair of a BM25 and a dense view by `fusion`, so that an expansion is compared with
    nothing but its own query.
    """

    bm25: BM25Index | None
    dense: DenseIndex | None
    texts: Mapping[str, Document]
    fusion: Fusion
    dense_weight: float | None
    depth: int

    @property
    def kinds(self) -> frozenset[Kind]:
        """What it searches by."""
        found: dict[Kind, object] = {"bm25": self.bm25, "dense": self.dense}
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
        if texts and not self.texts:
            raise InputError("the texts of the documents are not known here", remedy=GIVE_TEXTS)

    @property
    def _bm25(self) -> BM25Index:
        if self.bm25 is None:
            raise InputError("this augmentation needs a BM25 index", remedy="--first-stage bm25")
        return self.bm25

    @property
    def _dense(self) -> DenseIndex:
        if self.dense is None:
            raise InputError("this augmentation needs vectors", remedy="--first-stage dense")
        return self.dense

    def search(self, expansion: Expansion, k: int) -> list[Scored]:
        """Ids and scores of the k best documents, score falling, then id falling."""
        if expansion.ranking is not None:
            return list(expansion.ranking[:k])
        views = expansion.views
        if [view.vector is None for view in views] == [True, False]:
            return self._paired(views[0], views[1], k)
        found = [self._viewed(view, k) for view in views]
        if len(found) < 2:
            return found[0] if found else []
        rankings = [[document for document, _ in one] for one in found]
        return reciprocal_rank(rankings, k=expansion.constant)[:k]

    def _paired(self, words: View, meaning: View, k: int) -> list[Scored]:
        """One BM25 search and one dense search, fused as those of a plain query."""
        found = self._viewed(words, k), self._viewed(meaning, k)
        vector = np.asarray(meaning.vector, dtype=np.float32)[0]
        return self.fuse(self.completed(found, self._weights(words), vector), k)

    def completed(self, parts: Parts, words: str | Mapping[str, float], vector: Vectors) -> Parts:
        """What both searches found for a query, as `fuse` takes it.

        For the fusion `product` that is both scores of each document of either list.
        """
        if self.fusion != "product":
            return parts
        both = list(dict.fromkeys(name for part in parts for name, _ in part))
        scores = self._bm25.score(words, both), self._dense.score(vector, both)
        lexical, dense = (list(zip(both, one, strict=True)) for one in scores)
        return lexical, dense

    def fuse(self, parts: Parts, k: int) -> list[Scored]:
        """The k best of what both searches found."""
        return hybrid(self.fusion, *parts, dense_weight=self.dense_weight)[:k]

    def _viewed(self, view: View, k: int) -> list[Scored]:
        if view.vector is None:
            return self._bm25.search(self._weights(view), k)
        vector = np.asarray(view.vector, dtype=np.float32)
        return self._dense.search(vector, k, model=self._dense.model)[0]

    def score(self, view: View, ids: Sequence[str]) -> list[float]:
        """The scores of documents as one search gives them, in their order.

        0 for a document that BM25 does not find, as it has no term of the view.
        """
        if view.vector is None:
            return self._bm25.score(self._weights(view), ids)
        return self._dense.score(np.asarray(view.vector, dtype=np.float32)[0], ids)

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
        """A document with its text; `InputError` where it is not known."""
        if document_id not in self.texts:
            told = f"the text of document {document_id!r} is not known here"
            raise InputError(told, remedy=GIVE_TEXTS)
        return self.texts[document_id]


def check_encoder(index: DenseIndex, encoder: str) -> None:
    """`InputError` where an index was made by another model than queries are embedded with."""
    if index.model != encoder:
        raise InputError(
            f"the index has vectors of {index.model!r}, and queries are embedded with {encoder!r}",
            remedy="name the encoder that the index was built with, or build another index",
        )
