"""What the stages of a recipe look into: a corpus by its indexes, test data, languages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np

from llmrank.api.first_stage import Indexed, searched_by
from llmrank.api.retriever import Retriever
from llmrank.errors import InputError, MissingExtra
from llmrank.expand import plain
from llmrank.plan import Plan, Vectors
from llmrank.synth import HeldOut
from llmrank.synth.select import kmeans
from llmrank.types import Candidate, Query

_LEAST_TOPICS = 10
"""Documents below which there is nothing to map."""


class Corpus:
    """A corpus that is searched by the indexes of a retriever, if there is one."""

    def __init__(self, retriever: Retriever | None = None, held_out: HeldOut | None = None) -> None:
        self._retriever, self.held_out = retriever, held_out

    @property
    def kinds(self) -> frozenset[str]:
        """What can be searched by."""
        return self._retriever.indexed(1).kinds if self._retriever is not None else frozenset()

    def search(self, text: str, k: int, by: str) -> Plan[list[Candidate]]:
        """The k best documents for a text, with their texts; none where it cannot be embedded."""
        first = self._first(by, k)
        expansion = yield from plain(Query("", text), first, note="")
        if not expansion.views:
            return []
        return [
            Candidate(first.document(name), score) for name, score in first.search(expansion, k)
        ]

    def _first(self, by: str, depth: int) -> Indexed:
        if self._retriever is None:
            raise InputError("this recipe searches, and there is no index")
        first = self._retriever.indexed(depth)
        kinds = searched_by(by)
        return replace(
            first,
            bm25=first.bm25 if "bm25" in kinds else None,
            dense=first.dense if "dense" in kinds else None,
        )

    def vectors(self) -> tuple[Sequence[str], Vectors]:
        """The ids of all documents and their vectors, shape (documents, dimensions)."""
        if self._retriever is None or self._retriever.dense is None:
            raise InputError("this recipe needs vectors of the documents, and there are none")
        return self._retriever.dense.ids, self._retriever.dense.vectors

    def topics(self, ids: Sequence[str]) -> dict[str, dict[str, object]]:
        """For each document its cluster, and its place on the plane where they differ most.

        Clusters are those of k-means, the plane that of the first two principal components.
        """
        if self._retriever is None or self._retriever.dense is None or len(ids) < _LEAST_TOPICS:
            return {}
        vectors = self._retriever.dense.of(ids)
        labels = kmeans(vectors, max(2, min(12, round(len(ids) ** 0.5)))).labels
        centred = vectors - vectors.mean(axis=0)
        axes = np.linalg.svd(centred, full_matrices=False)[2][:2]
        places = (centred @ axes.T).tolist()
        found = zip(ids, places, labels.tolist(), strict=True)
        return {name: {"point": place, "cluster": cluster} for name, place, cluster in found}

    def language(self, text: str) -> Mapping[str, float]:
        """The probability of each language, by its code."""
        return dict(_identifier().rank(text))


@cache
def _identifier() -> Any:  # noqa: ANN401 - py3langid has no types
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError as error:
        raise MissingExtra("py3langid", "synth") from error
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
