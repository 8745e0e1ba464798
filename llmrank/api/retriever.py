"""The first stage as a library: BM25, dense retrieval, both fused, or an engine of one's own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np

from llmrank.api.closing import Closing, Lifeline
from llmrank.api.first_stage import Indexed, Parts, check_encoder, searched_by
from llmrank.api.reranker import Passage, candidate, candidates
from llmrank.api.session import Settings, demand_keys, patient
from llmrank.backends import connect_encoder
from llmrank.backends.wrappers import Meter
from llmrank.engine import run_sync
from llmrank.errors import BackendError, InputError
from llmrank.expand import Expansion
from llmrank.plan import Embed, Vectors
from llmrank.request import Backend, Request
from llmrank.retrieve import (
    BM25,
    BM25Index,
    DenseIndex,
    Engine,
    Fusion,
    ask_engine,
    check_fusion,
    hybrid,
)
from llmrank.store import write_whole
from llmrank.types import Candidate, Document, Query

FirstStage = Literal["bm25", "dense", "hybrid"]
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
    are those it was built from, and None opens it without. A dense index whose building was ended
    goes on where it stopped. BM25 is as `bm25` says: by default English analysis, Lucene's formula,
    k1 = .9 and b = .4; what is given must be as an index in the folder was built.

    `hybrid` searches BM25 and dense and fuses the two lists: `rrf` by ranks, `minmax` and `zscore`
    by normalised scores, each with `dense_weight` (one half if None) against 1 - dense_weight, and
    `product` by the product of the two scores, which are computed for all documents of both lists.

    `engine` searches instead of an index: a function of the texts of queries and k that gives a
    list of (id, score) for each query. Documents then only give the results their texts, and it may
    find no others. `meter` counts what was sent to the embedding model.
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
        bm25: BM25 | None = None,
        fusion: Fusion = "rrf",
        dense_weight: float | None = None,
        engine: Engine | None = None,
    ) -> None:
        bm25 = bm25 or BM25()
        check_search(first_stage, bm25, fusion, dense_weight)
        if engine is not None and (first_stage, index, bm25) != ("bm25", None, BM25()):
            raise InputError("an engine searches by itself", remedy="give it with documents alone")
        self.first_stage, self.fusion, self.dense_weight = first_stage, fusion, dense_weight
        self._engine = engine
        self.meter = Meter()
        self._texts: dict[str, Document] = {}
        self._folder = Path(index) if index else None
        self._encoder: Backend | None = None
        self.bm25: BM25Index | None = None
        self.dense: DenseIndex | None = None
        if first_stage != "bm25":
            model = connect_encoder(encoder, base_url=encoder_url)
            demand_keys(model)
            self._encoder = patient(model, self.meter, Settings(in_flight=1))
        self._open = Lifeline(self, partial(_release, self._encoder))
        self._documents = self._kept(documents)
        self._check_built_from()
        if first_stage != "dense" and engine is None:
            build = partial(_build_bm25, bm25=bm25)
            self.bm25 = self._opened("bm25", BM25Index.load, build)
            bm25.check(self.bm25, self._folder)
        if first_stage != "bm25":
            self.dense = self._opened("dense", DenseIndex.load, self._build_dense)
            check_encoder(self.dense, self._identity)
        self._documents = None

    def search(self, query: str | Query, k: int = 100) -> list[Candidate]:
        """The k best documents, best first; texts are there when they were given as documents."""
        return self.search_many([query], k)[0]

    def search_many(self, queries: Sequence[str | Query], k: int = 100) -> list[list[Candidate]]:
        """`search` for several queries."""
        if self._engine is not None:
            found = ask_engine(self._engine, queries, k)
            self._check_known(found)
        elif self.first_stage == "hybrid":
            found = [self.fuse(parts, k, self.dense_weight) for parts in self.parts(queries, k)]
        elif self.bm25 is not None:
            found = [self.bm25.search(text, k) for text in _texts(queries)]
        else:
            found = self._dense_parts(_texts(queries), k)[1]
        return [self._candidates(one) for one in found]

    def parts(self, queries: Sequence[str | Query], k: int) -> list[Parts]:
        """What BM25 and dense search each find for every query, as `fuse` takes them.

        Each finds k documents; for the fusion `product` each scores also what the other found.
        `InputError` where the first stage is not hybrid.
        """
        if self.bm25 is None or self.dense is None:
            raise InputError(f"the first stage is {self.first_stage}, which fuses nothing")
        texts = _texts(queries)
        vectors, dense = self._dense_parts(texts, k)
        lexical = [self.bm25.search(text, k) for text in texts]
        found = zip(lexical, dense, strict=True)
        complete = self.indexed(k).completed
        return [complete(*one) for one in zip(found, texts, vectors, strict=True)]

    def fuse(self, parts: Parts, k: int, dense_weight: float | None = None) -> list[Scored]:
        """The k best of what `parts` gave for a query."""
        return hybrid(self.fusion, *parts, dense_weight=dense_weight)[:k]

    def find(self, text: str, k: int) -> list[Scored]:
        """Ids and scores of the k best documents for a text."""
        return [(c.document.id, c.score) for c in self.search(text, k)]

    def search_expanded(self, expansion: Expansion, k: int = 100) -> list[Candidate]:
        """Search with what an augmentation made of a query."""
        return self._candidates(self.indexed(k).search(expansion, k))

    def indexed(self, depth: int) -> Indexed:
        """The indexes, as augmentations search them where so many documents are wanted."""
        settings = self.fusion, self.dense_weight, depth
        return Indexed(self.bm25, self.dense, self._texts, *settings)

    def embed(self, texts: Sequence[str], role: str) -> Vectors:
        """Vectors of texts: float32, shape (len(texts), dimensions)."""
        if self._encoder is None:
            raise InputError("this retriever has no embedding model; its first stage is bm25")
        return embed(self._encoder, texts, role)

    def describe(self) -> dict[str, object]:
        """What a manifest says of the search."""
        told: dict[str, object] = {"first_stage": self.first_stage}
        if self.bm25 is not None:
            told |= {name: getattr(self.bm25, name) for name in BM25.__slots__}
        if self.first_stage == "hybrid":
            told |= {"fusion": self.fusion, "dense_weight": self.dense_weight}
        return told

    def close(self) -> None:
        """Close the connections to an embedding model; a second time does nothing."""
        self._open.close()

    def _dense_parts(self, texts: Sequence[str], k: int) -> tuple[Vectors, list[list[Scored]]]:
        """The vectors of queries, and what they find."""
        if self.dense is None or self._encoder is None or not texts:
            return np.zeros((0, 1), dtype=np.float32), []
        vectors = self.embed(texts, "query")
        return vectors, self.dense.search(vectors, k, model=self._identity)

    @property
    def _identity(self) -> str:
        return self._encoder.identity if self._encoder is not None else ""

    def _check_known(self, found: Sequence[Sequence[Scored]]) -> None:
        """Raise where an engine finds documents that are not among those given."""
        if not self._texts:
            return
        unknown = sorted({name for hits in found for name, _ in hits} - self._texts.keys())
        if unknown:
            raise InputError(
                f"{len(unknown)} documents that the engine found are not among those given, "
                f"among them {', '.join(unknown[:5])}",
                remedy="give all documents that it searches, with the ids that it gives",
            )

    def _candidates(self, scored: Sequence[Scored]) -> list[Candidate]:
        return [Candidate(self._texts.get(i) or Document(i, ""), score) for i, score in scored]

    def _kept(self, documents: Iterable[Passage] | None) -> Iterable[Passage] | None:
        """The documents, as a list where they came as one or have to be read several times."""
        if not (documents is None or isinstance(documents, Iterable)):
            raise InputError(f"the documents are {type(documents).__name__}", remedy="give a list")
        wanted = KINDS if self.first_stage == "hybrid" else (self.first_stage,)
        passes = self._built + sum(not self._has(kind) for kind in wanted)
        read_again = passes > 1 or self._engine is not None
        if documents is None or not (read_again or isinstance(documents, Sequence | Mapping)):
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
        build: Callable[[Iterable[Document], Path | None], Index],
    ) -> Index:
        folder = None if self._folder is None else self._folder / kind
        if folder is not None and (folder.exists() or self._documents is None):
            return load(folder)
        if self._documents is None:
            raise InputError("no documents to search, and no index folder")
        return build(self._recorded(self._documents), folder)

    def _recorded(self, documents: Iterable[Passage]) -> Iterator[Document]:
        """Pass the documents on; after the last one write down beside the index what they were."""
        digest = _Digest()
        yield from digest.over(documents)
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_whole(self._folder / CORPUS, digest.text)

    def _build_dense(self, documents: Iterable[Document], folder: Path | None) -> DenseIndex:
        build = DenseIndex.build if folder is None else partial(DenseIndex.build_in, folder)
        return build(
            documents,
            lambda texts: self.embed(texts, "document"),
            model=self._identity,
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


def _texts(queries: Sequence[str | Query]) -> list[str]:
    return [query.text if isinstance(query, Query) else query for query in queries]


def check_search(first_stage: str, bm25: BM25, fusion: Fusion, dense_weight: float | None) -> None:
    """`InputError` where there is no such first stage or fusion, or one has no use for the rest."""
    searched_by(first_stage)
    check_fusion(fusion, dense_weight)
    if dense_weight is not None and first_stage != "hybrid":
        raise InputError(f"a weight of dense search is for hybrid, not for {first_stage}")
    if fusion != "rrf" and first_stage != "hybrid":
        raise InputError(f"the fusion {fusion} is for hybrid; {first_stage} fuses nothing")
    if first_stage == "dense" and bm25.given:
        raise InputError(f"{', '.join(bm25.given)}: of BM25, which dense does without")


def _build_bm25(documents: Iterable[Document], folder: Path | None, *, bm25: BM25) -> BM25Index:
    index = BM25Index.build(documents, **bm25.given)
    if folder is None:
        return index
    index.save(folder)
    return BM25Index.load(folder)


def embed(encoder: Backend, texts: Sequence[str], role: str) -> Vectors:
    """Vectors of texts from an embedding model; `BackendError` when it gives none."""
    starts = range(0, len(texts), EMBED_BATCH)
    asks = [Embed(tuple(texts[start : start + EMBED_BATCH]), role=role) for start in starts]
    requests = [Request(ask=ask, want="vectors", texts=ask.texts, role=role) for ask in asks]
    found = []
    for reply in run_sync(encoder.answer(requests)):
        if reply.error or reply.vectors is None:
            told = reply.error or "empty reply"
            raise BackendError(f"{encoder.identity} gave no vectors: {told}")
        found.append(reply.vectors)
    return np.concatenate(found)


def _release(encoder: Backend | None) -> None:
    if encoder is not None:
        run_sync(encoder.close())
