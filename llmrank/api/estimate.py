"""What a run will cost, before one request is sent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from math import ceil
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import numpy as np

from llmrank.api.expansion import with_texts
from llmrank.api.first_stage import Indexed
from llmrank.api.pipeline import Found, Pipeline
from llmrank.api.retriever import EMBED_BATCH, Retriever, check_search
from llmrank.api.runs import Inputs
from llmrank.api.session import Session, Settings, settle
from llmrank.backends import Model, connect, connect_encoder
from llmrank.backends.oracle import Oracle
from llmrank.backends.tokens import Served
from llmrank.backends.tokens import estimate as token_count
from llmrank.backends.wrappers import Caps, Pool, expected_usage
from llmrank.plan import Embed, Vectors
from llmrank.request import Reply, Request
from llmrank.rerank import Ranker
from llmrank.retrieve import BM25, DenseIndex, Fusion, distinct
from llmrank.store import Journal
from llmrank.types import Candidate, Document, Ordering, Query, Status, Tally, Usage

DIMENSIONS = 16


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a run sends if the model confirms the first-stage order and every reply is usable.

    `model` is its name in the journal, where what a probe found out may be part of it.
    `calls` are those not yet in the journal, `known` those that are; the same request is sent once.
    Methods that sort (`prp`, `setwise`, `tdpart`, `blitz`, `acurank` ...) send more where answers
    move documents, up to `calls_at_most`, which comes from their formulas; it is `calls` where the
    answers cannot change the number. Unusable replies are asked for again beyond both.

    All else is that of `calls`. Tokens of the prompts are counted as `counting` says, those of
    the replies are the limit sent with each request; `cost` is that of both, 0 where there are
    no prices; `too_long` prompts cannot be made to fit the model and fail. `rounds` is the
    largest number of calls of a query that have to wait for one another, `seconds_at_least` what
    the limits per minute make of the calls and of the tokens of their prompts.

    A server's own tokenizer is not asked. Where the run asks it, passages that have to be cut to
    tokens may be cut elsewhere, and what the journal has of them is then not among the `known`.
    `embedding_calls` and `embedding_tokens`, which `counting` has no part in, go to the embedding
    model; those of an index that is not built yet are among them.
    """

    model: str
    queries: int
    calls: int
    calls_at_most: int
    known: int
    rounds: int
    usage: Usage
    cost: float
    passages_cut: int
    too_long: int
    counting: str
    seconds_at_least: float
    embedding_calls: int = 0
    embedding_tokens: int = 0


class StandIn(Oracle):
    """Takes the model's place: keeps every order as it is, and counts what would have been sent.

    By query id: `calls`, replies `known` from the journal, and of these the `certain` ones, which
    are needed before anything is sent. Texts to be written stand under the id "". What would go to
    the `encoder` is `embeddings`, with `embedded` tokens; its vectors are arbitrary.
    """

    def __init__(self, model: Model, journal: Journal | None, encoder: Model | None = None) -> None:
        super().__init__({})
        asked = model.tokenizer
        self.wants = model.wants | ({"vectors"} if encoder else set())
        self.tokenizer = asked.unasked if isinstance(asked, Served) else asked
        self._model, self._journal, self._encoder = model, journal, encoder
        self.usage = Usage()
        self.embeddings = self.embedded = 0
        self.calls: Counter[str] = Counter()
        self.known: Counter[str] = Counter()
        self.certain: Counter[str] = Counter()
        self._seen: set[str] = set()

    async def answer(self, requests: Sequence[Request]) -> list[Reply]:
        """The journal's reply where there is one, else one that keeps the order."""
        return [
            self._vectors(request, request.ask)
            if isinstance(request.ask, Embed)
            else self._stored(request) or (await super(StandIn, self).answer([request]))[0]
            for request in requests
        ]

    def _vectors(self, request: Request, ask: Embed) -> Reply:
        key = request.key(self._encoder.identity) if self._encoder is not None else ""
        known = self._journal is not None and self._journal.get(key) is not None
        if not known and key not in self._seen:
            self.embeddings += 1
            self.embedded += sum(map(token_count, ask.texts))
        self._seen.add(key)
        return Reply(vectors=arbitrary(ask.texts), model="oracle")

    def _stored(self, request: Request) -> Reply | None:
        key = request.key(self._model.identity)
        reply = self._journal.get(key) if self._journal is not None else None
        again = key in self._seen
        self._seen.add(key)
        asker = getattr(request.ask, "query", None)
        query = asker.id if isinstance(asker, Query) else ""
        if reply is not None:
            self.known[query] += not again
            self.certain[query] += not self.calls[query]
        elif not again:
            self.calls[query] += 1
            self.usage += expected_usage(request, self._model.counter.count)
        return reply

    def at_most(self, query: str, asks: tuple[int, bool], rounds: int) -> int:
        """The most calls of a query, given the most asks of its plan and whether this is exact."""
        calls, (most, exact) = self.calls[query], asks
        if not calls or (exact and rounds < 2):
            return calls
        return max(calls, most - self.certain[query])


def estimate(
    settings: Settings,
    method: Ranker,
    inputs: Inputs,
    journal: Journal | None = None,
    *,
    model: Model | None = None,
) -> Estimate:
    """Drive the run's own plans with a stand-in for the model and count what it would be sent.

    The model, by default that of the settings, is sent nothing, and needs no key.
    """
    model = _settled(settings, model, journal)
    counter = StandIn(model, journal)
    tallies: dict[str, Tally] = {}

    def finished(query_id: str, ordering: Ordering, tally: Tally) -> None:
        tallies[query_id] = tally

    with _session(settings, counter) as session:
        session.check(method.needs)
        inputs.attempt(method)
        session.run_sync(inputs.plans(method), finished)
    at_most = sum(
        counter.at_most(query, method.most_calls(inputs.candidates(hits)), tallies[query].rounds)
        for query, hits in inputs.groups()
    )
    return _estimate(settings, model, counter, tallies.values(), at_most)


def estimate_pipeline(
    settings: Settings,
    pipeline: Pipeline,
    first: StoodIn,
    queries: Iterable[Query],
    journal: Journal | None = None,
    *,
    model: Model | None = None,
) -> Estimate:
    """`estimate` for a first stage, an augmentation and methods; nothing is sent to the encoder.

    BM25 is searched as the run does it. The vectors are arbitrary, so that dense search finds as
    many documents as the run, but others, and the passages are as long as those of the corpus. A
    text that the model would write is stood in for by a few words; `calls_at_most` has room for as
    many documents as a longer one may find, and for what a gate may have graded.
    """
    model = _settled(settings, model, journal)
    dense = "dense" in pipeline.kinds
    encoder = connect_encoder(settings.encoder, base_url=settings.encoder_url) if dense else None
    counter = StandIn(model, journal, encoder)
    asked = with_texts(queries)
    done: dict[str, tuple[Found, Tally]] = {}

    def finished(query_id: str, found: Found, tally: Tally) -> None:
        done[query_id] = found, tally

    with _session(settings, counter) as session:
        session.check(pipeline.needs)
        plans = ((query.id, pipeline.plan(query, first.indexed)) for query in asked)
        session.run_sync(plans, finished)
    at_most = counter.calls[""] + sum(
        _most(pipeline, first.indexed, counter, query.id, *done[query.id]) for query in asked
    )
    tallies = [tally for _, tally in done.values()]
    counter.embeddings += first.calls
    counter.embedded += first.tokens
    return _estimate(settings, model, counter, tallies, at_most)


class StoodIn(NamedTuple):
    """A first stage to estimate with, and what its vectors take that the index has not yet."""

    indexed: Indexed
    calls: int
    tokens: int


def stand_in(
    pipeline: Pipeline,
    documents: Sequence[Document],
    *,
    index: Path | None = None,
    bm25: BM25 | None = None,
    fusion: Fusion = "rrf",
    dense_weight: float | None = None,
) -> StoodIn:
    """The first stage of a pipeline, with arbitrary vectors where it is dense.

    An index folder is opened where it has what is needed, and nothing is written there.
    """
    check_search(pipeline.first_stage, bm25 or BM25(), fusion, dense_weight)
    texts = {document.id: document for document in distinct(documents)}
    words = dense = None
    if "bm25" in pipeline.kinds:
        there = index if index is not None and (index / "bm25").exists() else None
        words = Retriever(documents, index=there, bm25=bm25).bm25
    calls = tokens = 0
    if "dense" in pipeline.kinds:
        dense = DenseIndex.build(documents, arbitrary, model="arbitrary")
        if index is None or not (index / "dense").exists():
            calls = ceil(len(documents) / EMBED_BATCH)
            tokens = sum(token_count(document.contents) for document in documents)
    settings = fusion, dense_weight, pipeline.depth
    return StoodIn(Indexed(words, dense, texts, *settings), calls, tokens)


def arbitrary(texts: Sequence[str]) -> Vectors:
    """A vector for each text, the same for the same text, that says nothing of it."""
    seeds = (crc32(text.encode("utf-8", "surrogatepass")) for text in texts)
    rows = [np.random.default_rng(seed).standard_normal(DIMENSIONS) for seed in seeds]
    return np.array(rows, dtype=np.float32)


def _most(
    pipeline: Pipeline, first: Indexed, counter: StandIn, query: str, found: Found, tally: Tally
) -> int:
    """The most calls of a query beside those for texts."""
    calls, exact = 0, True
    if pipeline.method is not None:
        names = dict.fromkeys(name for name, _ in found.hits)
        if pipeline.expander is not None:
            names |= dict.fromkeys(islice(first.texts, pipeline.depth + len(names)))
        listed = islice(names, pipeline.depth)
        candidates = [Candidate(first.document(name), 0.0) for name in listed]
        calls, exact = pipeline.method.most_calls(candidates)
        exact = exact and len(candidates) == len(found.hits)
    graded = pipeline.expander.graded if pipeline.expander is not None else 0
    if graded or not exact:
        return max(counter.calls[query], calls + graded - counter.certain[query])
    own = (cost for stage, cost in tally.stages.items() if stage != str(pipeline.expander))
    return counter.at_most(query, (calls, exact), sum(cost.rounds for cost in own))


def _settled(settings: Settings, model: Model | None, journal: Journal | None) -> Model:
    model = model or connect(settings.model, base_url=settings.base_url)
    return model if journal is None else settle(model, journal)


def _session(settings: Settings, counter: StandIn) -> Session:
    """A session without limits, which would only make it wait."""
    free = replace(settings, caps=Caps(), rpm=None, tpm=None, hedge=False)
    return Session(free, model=counter)


def _estimate(
    settings: Settings, model: Model, counter: StandIn, tallies: Collection[Tally], at_most: int
) -> Estimate:
    total = sum(tallies, Tally())
    calls = counter.calls.total()
    return Estimate(
        model.identity,
        len(tallies),
        calls,
        at_most,
        counter.known.total(),
        total.rounds,
        counter.usage,
        settings.caps.price(counter.usage),
        total.cut,
        total.outcomes.get(Status.FAILED, 0),
        model.counter.counting,
        _least(settings, model, calls, counter.usage.prompt_tokens),
        counter.embeddings,
        counter.embedded,
    )


def _least(settings: Settings, model: Model, calls: int, tokens: int) -> float:
    """Seconds that a run takes at the least; of a pool each server has the limits of its own."""
    servers = len(model.members) if isinstance(model, Pool) else 1
    limited = ((calls, settings.rpm), (tokens, settings.tpm))
    # What the first minute takes is sent at once. A request beyond the limit of tokens goes alone.
    minutes = (min(calls, ceil(n / (limit * servers))) - 1 for n, limit in limited if limit)
    return 60.0 * max([0, *minutes]) if model.batch == 1 else 0.0
