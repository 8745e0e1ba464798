"""The first stage as a library: BM25, dense retrieval, or both fused."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar, get_args

import numpy as np

from llmrank.api.closing import Closing, Lifeline
from llmrank.api.reranker import Passage, candidate, candidates
from llmrank.api.session import Settings, patient
from llmrank.backends import connect_encoder
from llmrank.backends.wrappers import Meter
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
KINDS = ("bm25", "dense")
CORPUS = "corpus.json"

Index = TypeVar("Index", BM25Index, DenseIndex)


class Retriever(Closing):
    """Finds the documents of a corpus that a query may be about.

    `documents` is any iterable of texts, mappings or documents, as a `Reranker` takes them; those
    of a list have their texts in the results. With an `index` folder the index is built there once
    and opened from there afterwards, memory-mapped; documents are then read only to check that they
    are those it was built from, and None opens it without. `hybrid` searches BM25 and dense and
    fuses the two lists, by reciprocal rank or by weighted min-max (`dense_weight` against
    1 - dense_weight). BM25 has k1 = .9, b = .4, Lucene's formula and by default English analysis.
    Close it, or use it as a context manager, where the embedding model is on a server.
    """

    def __init__(
        self,
        documents: Iterable[Passage] | None = None,
        *,
        first_stage: FirstStage = "bm25",
        index: str | Path | None = None,
        encoder: str | None = None,
        encoder_url: str | None = None,
        analyzer: str | None = None,
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
        self._encoder: Backend | None = None
        self.bm25: BM25Index | None = None
        self.dense: DenseIndex | None = None
        if first_stage != "bm25":
            model = connect_encoder(encoder, base_url=encoder_url)
            self._encoder = patient(model, Meter(), Settings(in_flight=1))
        self._open = Lifeline(self, partial(_release, self._encoder))
        self._documents = self._kept(documents)
        self._check_built_from()
        if first_stage != "dense":
            self.bm25 = self._opened(
                "bm25",
                BM25Index.load,
                lambda found: BM25Index.build(found, analyzer=analyzer or "english"),
            )
            if analyzer not in (None, self.bm25.analyzer):
                raise InputError(
                    f"the index has the analyzer {self.bm25.analyzer!r}, not {analyzer!r}",
                    path=self._folder,
                    remedy="build another index",
                )
        if first_stage != "bm25":
            self.dense = self._opened("dense", DenseIndex.load, self._build_dense)
        self._documents = None

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
        if self._encoder is None:
            raise InputError("this retriever has no embedding model; its first stage is bm25")
        return embed(self._encoder, texts, role)

    def close(self) -> None:
        """Close the connections to an embedding model; a second time does nothing."""
        self._open.close()

    def _fused(
        self, query: str | Mapping[str, float], vector: Vectors | None, k: int
    ) -> list[Scored]:
        lists: list[list[Scored]] = []
        if self.bm25 is not None:
            lists.append(self.bm25.search(query, k))
        if self.dense is not None and self._encoder is not None and vector is not None:
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

    def _kept(self, documents: Iterable[Passage] | None) -> Iterable[Passage] | None:
        """The documents, as a list where they came as one or have to be read several times."""
        if not (documents is None or isinstance(documents, Iterable)):
            raise InputError(f"the documents are {type(documents).__name__}", remedy="give a list")
        wanted = KINDS if self.first_stage == "hybrid" else (self.first_stage,)
        passes = self._built + sum(not self._has(kind) for kind in wanted)
        if documents is None or not (passes > 1 or isinstance(documents, Sequence | Mapping)):
            return documents
        kept = [candidate.document for candidate in candidates(documents)]
        self._texts = {document.id: document for document in kept}
        return kept

    @property
    def _built(self) -> bool:
        """Whether the folder holds an index."""
        return any(map(self._has, KINDS))

    def _has(self, kind: str) -> bool:
        return self._folder is not None and (self._folder / kind).exists()

    def _check_built_from(self) -> None:
        """Raise where the folder has an index of other documents than those given."""
        if self._folder is None or self._documents is None or not self._built:
            return
        found = _Digest()
        for _ in found.over(self._documents):
            pass
        path = self._folder / CORPUS
        recorded = path.read_text(encoding="utf-8") if path.exists() else ""
        if recorded != found.text:
            raise InputError(
                "this index was built from other documents",
                path=self._folder,
                remedy="name another folder, or remove this one to have it built again",
            )

    def _opened(
        self,
        kind: str,
        load: Callable[[Path], Index],
        build: Callable[[Iterable[Document]], Index],
    ) -> Index:
        folder = None if self._folder is None else self._folder / kind
        if folder is not None and (folder.exists() or self._documents is None):
            return load(folder)
        if self._documents is None:
            raise InputError("no documents to search, and no index folder")
        digest = _Digest()
        index = build(digest.over(self._documents))
        if self._folder is None or folder is None:
            return index
        self._folder.mkdir(parents=True, exist_ok=True)
        write_whole(self._folder / CORPUS, digest.text)
        index.save(folder)
        return load(folder)

    def _build_dense(self, documents: Iterable[Document]) -> DenseIndex:
        return DenseIndex.build(
            documents,
            lambda texts: self.embed(texts, "document"),
            model=self._encoder.identity if self._encoder is not None else "",
            batch=EMBED_BATCH,
        )


class _Digest:
    """What documents an index was built from: their number and the SHA-256 of ids and texts."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._count = 0

    def over(self, passages: Iterable[Passage]) -> Iterator[Document]:
        """Pass the documents on, taking note of each."""
        for passage in passages:
            document = candidate(str(self._count), passage).document
            content = json.dumps([document.id, document.contents])
            self._hash.update(content.encode())
            self._count += 1
            yield document

    @property
    def text(self) -> str:
        """As it is written beside the index."""
        return json.dumps({"documents": self._count, "sha256": self._hash.hexdigest()}) + "\n"


def embed(encoder: Backend, texts: Sequence[str], role: str) -> Vectors:
    """Vectors of texts from an embedding model; `BackendError` when it gives none."""
    ask = Embed(tuple(texts), role=role)
    request = Request(ask=ask, want="vectors", texts=ask.texts, role=role)
    (reply,) = run_sync(encoder.answer([request]))
    if reply.error or reply.vectors is None:
        raise BackendError(f"{encoder.identity} gave no vectors: {reply.error or 'empty reply'}")
    return reply.vectors


def _release(encoder: Backend | None) -> None:
    if encoder is not None:
        run_sync(encoder.close())
