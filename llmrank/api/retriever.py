"""The first stage as a library: BM25, dense retrieval, or both fused."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, TypeVar, get_args

import numpy as np

from llmrank.api.closing import Lifeline
from llmrank.api.reranker import Passage, candidates
from llmrank.api.session import Settings, patient
from llmrank.backends import connect_encoder
from llmrank.engine import run_sync
from llmrank.errors import BackendError, InputError
from llmrank.expand import Expansion
from llmrank.plan import Embed, Vectors
from llmrank.request import Backend, Request
from llmrank.retrieve import ANALYZERS, BM25Index, DenseIndex, minmax, reciprocal_rank
from llmrank.store import write_whole
from llmrank.types import Candidate, Document, Query

FirstStage = Literal["bm25", "dense", "hybrid"]
Fusion = Literal["rrf", "minmax"]
Scored = tuple[str, float]

EMBED_BATCH = 64

Index = TypeVar("Index", BM25Index, DenseIndex)


class Retriever:
    """Finds the documents of a corpus that a query may be about.

    `documents` is any iterable of documents, read once; None opens what `index` holds. With an
    `index` folder the index is built there once and opened from there afterwards, memory-mapped.
    `hybrid` searches BM25 and dense and fuses the two lists, by reciprocal rank or by weighted
    min-max (`dense_weight` against 1 - dense_weight). BM25 has k1 = .9, b = .4, Lucene's formula
    and English analysis.
    """

    def __init__(
        self,
        documents: Iterable[Document | str] | None = None,
        *,
        first_stage: FirstStage = "bm25",
        index: str | Path | None = None,
        encoder: str | None = None,
        encoder_url: str | None = None,
        analyzer: str = "english",
        fusion: Fusion = "rrf",
        dense_weight: float = 0.5,
    ) -> None:
        for what, given, known in (
            ("first stage", first_stage, get_args(FirstStage)),
            ("fusion", fusion, get_args(Fusion)),
        ):
            if given not in known:
                raise InputError(f"no {what} named {given!r}; there are: {', '.join(known)}")
        self.first_stage, self.fusion, self.dense_weight = first_stage, fusion, dense_weight
        self._texts: dict[str, Document] = {}
        self._folder = Path(index) if index else None
        self.bm25: BM25Index | None = None
        self.dense: DenseIndex | None = None
        corpus = self._corpus(documents)
        if first_stage != "dense":
            self.bm25 = self._open(
                "bm25", corpus, BM25Index.load, lambda d: BM25Index.build(d, analyzer=analyzer)
            )
        if first_stage != "bm25":
            self._encoder = connect_encoder(encoder, base_url=encoder_url)
            self.dense = self._open("dense", corpus, DenseIndex.load, self._build_dense)

    def search(self, query: str | Query, k: int = 100) -> list[Candidate]:
        """The k best documents, best first; texts are there when they were given as documents."""
        return self.search_many([query], k)[0]

    def search_many(self, queries: Sequence[str | Query], k: int = 100) -> list[list[Candidate]]:
        """`search` for several queries."""
        texts = [query.text if isinstance(query, Query) else query for query in queries]
        vectors = self.embed(texts, "query") if self.dense is not None and texts else None
        return [
            self._candidates(self._fused(text, None if vectors is None else vectors[i], k))
            for i, text in enumerate(texts)
        ]

    def find(self, text: str, k: int) -> list[Scored]:
        """Ids and scores of the k best documents for a text."""
        return [(c.document.id, c.score) for c in self.search(text, k)]

    def search_expanded(self, expansion: Expansion, k: int = 100) -> list[Candidate]:
        """Search with what an augmentation made of a query: by its texts and by its vector."""
        vector = None
        if self.dense is not None:
            if expansion.vector is None:
                raise InputError("this expansion has no vector; use a dense one such as hyde")
            vector = np.asarray(expansion.vector[0], dtype=np.float32)
        return self._candidates(self._fused(self._weights(expansion), vector, k))

    def embed(self, texts: Sequence[str], role: str) -> Vectors:
        """Vectors of texts: float32, shape (len(texts), dimensions)."""
        return embed(self._encoder, texts, role)

    def _fused(
        self, query: str | Mapping[str, float], vector: Vectors | None, k: int
    ) -> list[Scored]:
        lists: list[list[Scored]] = []
        if self.bm25 is not None:
            lists.append(self.bm25.search(query, k))
        if self.dense is not None and vector is not None:
            model = self._encoder.identity
            lists.append(self.dense.search(vector.reshape(1, -1), k, model=model)[0])
        if len(lists) == 1:
            return lists[0]
        if self.fusion == "rrf":
            return reciprocal_rank([[doc for doc, _ in found] for found in lists])[:k]
        return minmax(lists, weights=[1 - self.dense_weight, self.dense_weight])[:k]

    def _weights(self, expansion: Expansion) -> Mapping[str, float]:
        """Analysed terms with weights: the query `repeat` times and each text once."""
        analyze = ANALYZERS[self.bm25.analyzer if self.bm25 is not None else "english"]
        weights: Counter[str] = Counter()
        for term in analyze(expansion.query.text):
            weights[term] += expansion.repeat
        for text in expansion.texts:
            weights.update(analyze(text))
        return dict(weights)

    def _candidates(self, scored: Sequence[Scored]) -> list[Candidate]:
        return [Candidate(self._texts.get(i) or Document(i, ""), score) for i, score in scored]

    def _corpus(
        self, documents: Iterable[Document | str] | None
    ) -> Callable[[], Iterable[Document]]:
        """Documents to index; those given as a sequence are kept, so that hits have texts."""
        if documents is None:
            return lambda: ()
        if isinstance(documents, Sequence):
            kept = [
                Document(str(i), given) if isinstance(given, str) else given
                for i, given in enumerate(documents)
            ]
            self._texts = {document.id: document for document in kept}
            return lambda: kept
        if self.first_stage == "hybrid":
            return self._corpus(list(documents))
        return lambda: (
            d if isinstance(d, Document) else Document(str(i), d) for i, d in enumerate(documents)
        )

    def _open(
        self,
        kind: str,
        corpus: Callable[[], Iterable[Document]],
        load: Callable[[Path], Index],
        build: Callable[[Iterable[Document]], Index],
    ) -> Index:
        folder = None if self._folder is None else self._folder / kind
        if folder is not None and folder.exists():
            return load(folder)
        index = build(corpus())
        if folder is None:
            return index
        index.save(folder)
        return load(folder)

    def _build_dense(self, documents: Iterable[Document]) -> DenseIndex:
        return DenseIndex.build(
            documents,
            lambda texts: self.embed(texts, "document"),
            model=self._encoder.identity,
            batch=EMBED_BATCH,
        )


def embed(encoder: Model, texts: Sequence[str], role: str) -> Vectors:
    """Vectors of texts from an embedding model; `BackendError` when it gives none."""
    ask = Embed(tuple(texts), role=role)
    request = Request(ask=ask, want="vectors", texts=ask.texts, role=role)
    (reply,) = run_sync(encoder.answer([request]))
    if reply.error or reply.vectors is None:
        raise BackendError(f"{encoder.identity} gave no vectors: {reply.error or 'empty reply'}")
    return reply.vectors
