"""First stages small enough to compute what they find by hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from llmrank.expand import Expansion, Kind, Scored, View
from llmrank.plan import Vectors
from llmrank.types import Document

BM25: frozenset[Kind] = frozenset({"bm25"})
DENSE: frozenset[Kind] = frozenset({"dense"})


class Toy:
    """Texts scored by how often they have a term, times its weight; vectors by inner product.

    `depths` are how deep it was searched.
    """

    def __init__(
        self,
        texts: Mapping[str, str],
        vectors: Mapping[str, Sequence[float]] | None = None,
        *,
        depth: int = 10,
    ) -> None:
        self.texts, self.depth, self.size = texts, depth, len(vectors or texts)
        self._vectors = vectors or {}
        self.kinds = DENSE if vectors else BM25
        self.depths: list[int] = []

    def search(self, expansion: Expansion, k: int) -> list[Scored]:
        self.depths.append(k)
        (view,) = expansion.views
        names = list(self._vectors or self.texts)
        scores = zip(names, self.score(view, names), strict=True)
        found = [pair for pair in scores if pair[1] > 0 or self._vectors]
        return sorted(found, key=lambda pair: (pair[1], pair[0]), reverse=True)[:k]

    def score(self, view: View, ids: Sequence[str]) -> list[float]:
        if view.vector is not None:
            return [float(view.vector[0] @ np.array(self._vectors[name])) for name in ids]
        weights = Counter[str]()
        for term, weight in view.terms.items():
            weights[term] += weight  # type: ignore[assignment]
        for text, count in view.texts:
            for term in self.analyze(text):
                weights[term] += count  # type: ignore[assignment]
        return [float(sum(weights[t] for t in self.analyze(self.texts[name]))) for name in ids]

    def analyze(self, text: str) -> list[str]:
        return text.split()

    def frequency(self, term: str) -> int:
        return sum(term in self.analyze(text) for text in self.texts.values())

    def counts(self, document_id: str) -> Mapping[str, int]:
        return Counter(self.analyze(self.texts[document_id]))

    def vectors(self, ids: Sequence[str]) -> Vectors:
        width = len(next(iter(self._vectors.values())))
        rows = [self._vectors[name] for name in ids]
        return np.array(rows, dtype=np.float32).reshape(len(ids), width)

    def document(self, document_id: str) -> Document:
        return Document(document_id, self.texts[document_id])
