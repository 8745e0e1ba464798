"""First stages small enough to compute what they find by hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from llmrank.expand import Expansion, Kind, Scored
from llmrank.plan import Vectors
from llmrank.types import Document


class Toy:
    """Texts scored by how often they have a term, times its weight; vectors by inner product."""

    def __init__(
        self,
        texts: Mapping[str, str],
        vectors: Mapping[str, Sequence[float]] | None = None,
        *,
        depth: int = 10,
    ) -> None:
        self.texts, self.depth, self.size = texts, depth, len(texts)
        self._vectors = vectors or {}
        kind: Kind = "dense" if vectors else "bm25"
        self.kinds = frozenset({kind})

    def search(self, expansion: Expansion, k: int) -> list[Scored]:
        (view,) = expansion.views
        if view.vector is not None:
            scores = {i: float(view.vector[0] @ np.array(v)) for i, v in self._vectors.items()}
        else:
            weights = Counter[str]()
            for term, weight in view.terms.items():
                weights[term] += weight  # type: ignore[assignment]
            for text, count in view.texts:
                for term in self.analyze(text):
                    weights[term] += count  # type: ignore[assignment]
            found = {i: sum(weights[t] for t in self.analyze(x)) for i, x in self.texts.items()}
            scores = {i: float(score) for i, score in found.items() if score > 0}
        return sorted(scores.items(), key=lambda pair: (pair[1], pair[0]), reverse=True)[:k]

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
