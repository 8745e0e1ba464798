"""Reranking as a library: a query and some passages in, a ranking out."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from numbers import Real
from pathlib import Path
from typing import Any, cast

import llmrank.rerank as methods
from llmrank.api.closing import Closing
from llmrank.api.session import Session, Settings, check
from llmrank.backends import connect
from llmrank.backends.wrappers import Cached, Caps
from llmrank.errors import InputError
from llmrank.plan import Plan
from llmrank.request import Backend, Reply
from llmrank.rerank import Ranker
from llmrank.retrieve import score_passages
from llmrank.store import Journal
from llmrank.types import Candidate, Document, Hit, Ordering, Query, Ranking, Tally

Passage = str | Mapping[str, object] | Document | Candidate
"""A passage as users have them: a text, a mapping with `text` (and `id`, `title`, `score`), a
`Document`, or a `Candidate` with its first-stage score."""

LOCAL_METHOD = "likelihood(prior=0.5)"
PAIR_METHOD = "yesno"
SERVER_METHOD = "adaptive"

REMEMBERED = 4096
"""Answers that a reranker without a journal keeps in memory: a few megabytes."""


def default_method(model: Backend) -> Ranker:
    """The method for a model, when the user names none.

    A model small enough to run in this process ranks by likelihood and not by instruction; one that
    grades pairs is asked for nothing else.
    """
    if "pair" in model.wants:
        return methods.parse(PAIR_METHOD)
    in_process = model.identity.startswith(("local:", "seq2seq:"))
    return methods.parse(LOCAL_METHOD if in_process else SERVER_METHOD)


class Reranker(Closing):
    """Reorders passages by relevance to a query with a language model.

    `model` is a name such as `openai:gpt-4.1-mini`, by default the server at `base_url` if there is
    one, else a small local model. `method` is a spec such as `sliding(window=20, stride=10)@100`.
    With a `journal` file no request is ever paid for twice. Without one the last `remember` answers
    are kept in memory, so that an equal request is not sent again; with 0 it is. `settings` has all
    else that can be said of how the model is asked; what is given beside it goes before it.
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        method: str | Ranker | None = None,
        base_url: str | None = None,
        prompts: Mapping[str, str | Path] | None = None,
        journal: str | Path | None = None,
        in_flight: int | None = None,
        caps: Caps | None = None,
        settings: Settings | None = None,
        remember: int = REMEMBERED,
    ) -> None:
        if remember < 0:
            raise InputError(f"remember must be at least 0, not {remember}")
        given: dict[str, Any] = {
            "model": model,
            "base_url": base_url,
            "prompts": prompts,
            "in_flight": in_flight,
            "caps": caps,
        }
        settings = replace(
            settings or Settings(),
            **{name: value for name, value in given.items() if value is not None},
        )
        backend = connect(settings.model, base_url=settings.base_url)
        chosen = method or default_method(backend)
        self.method = methods.parse(chosen) if isinstance(chosen, str) else chosen
        check(settings, backend, self.method.needs)
        self._session = Session(
            settings, Journal(Path(journal)) if journal else None, model=backend
        )
        if remember and not journal:
            self._session.backend = Cached(self._session.backend, _Recent(remember))

    def rank(self, query: str | Query, passages: Iterable[Passage]) -> Ranking:
        """The passages in order of relevance, with what the ranking cost."""
        return self.rank_many([(query, passages)])[0]

    def rank_many(self, requests: Iterable[tuple[str | Query, Iterable[Passage]]]) -> list[Ranking]:
        """Several queries at once, each with its own passages; rankings in the same order."""
        rankings = _Rankings(requests, self.method)
        self._session.run_sync(rankings.plans(), rankings.finished)
        return rankings.collect()

    async def arank(self, query: str | Query, passages: Iterable[Passage]) -> Ranking:
        """`rank` for asynchronous code."""
        return (await self.arank_many([(query, passages)]))[0]

    async def arank_many(
        self, requests: Iterable[tuple[str | Query, Iterable[Passage]]]
    ) -> list[Ranking]:
        """`rank_many` for asynchronous code."""
        rankings = _Rankings(requests, self.method)
        await self._session.run(rankings.plans(), rankings.finished)
        return rankings.collect()

    def close(self) -> None:
        """Close connections and the journal."""
        self._session.close()

    def __repr__(self) -> str:
        return f"Reranker({self._session.model.identity!r}, method={str(self.method)!r})"


class _Recent:
    """The last answers, in memory: those that were asked for most recently."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._replies: OrderedDict[str, Reply] = OrderedDict()

    def get(self, key: str) -> Reply | None:
        """The reply stored under a key, marked as reused."""
        reply = self._replies.get(key)
        if reply is None:
            return None
        self._replies.move_to_end(key)
        return replace(reply, reused=True)

    def put(self, items: Sequence[tuple[str, Mapping[str, object], Reply]]) -> None:
        """Store replies, and forget the oldest."""
        self._replies.update((key, reply) for key, _, reply in items)
        while len(self._replies) > self._most:
            self._replies.popitem(last=False)


class _Rankings:
    """Requests as plans, and the rankings they led to."""

    def __init__(
        self, requests: Iterable[tuple[str | Query, Iterable[Passage]]], method: Ranker
    ) -> None:
        self._method = method
        self._jobs = [
            _job(str(number), query, passages)
            for number, (query, passages) in enumerate(requests, start=1)
        ]
        self._done: dict[int, Ranking] = {}
        # All of them, so that none is paid for where another cannot be ranked.
        for job in self._jobs:
            method.attempt(*job)

    def plans(self) -> Iterable[tuple[int, Plan[Ordering]]]:
        for i, (query, candidates) in enumerate(self._jobs):
            yield i, self._method.plan(query, candidates)

    def finished(self, key: int, ordering: Ordering, tally: Tally) -> None:
        query, candidates = self._jobs[key]
        self._done[key] = Ranking(query, hits(candidates, ordering), tally)

    def collect(self) -> list[Ranking]:
        return [self._done[i] for i in range(len(self._jobs))]


def _job(
    number: str, query: str | Query, passages: Iterable[Passage]
) -> tuple[Query, Sequence[Candidate]]:
    asked = Query(number, query) if isinstance(query, str) else query
    if not isinstance(asked, Query):
        raise InputError(f"the query is {type(query).__name__}", remedy="give a str or a Query")
    if not asked.text.strip():
        raise InputError(f"query {asked.id!r} has no text")
    return asked, candidates_from(asked, passages)


def candidates_from(query: Query, passages: Iterable[Passage]) -> list[Candidate]:
    """Candidates in the order given, each with an id of its own.

    A passage without an id gets its position, from 0. Where no passage brings a score, BM25 over
    these passages stands in for the first stage's. Two passages may have equal texts, but an id
    given twice is an `InputError`, and so are passages of which none has a text or only some bring
    a score.
    """
    given = _several(passages)
    scored = [isinstance(p, Candidate) or (isinstance(p, Mapping) and "score" in p) for p in given]
    if any(scored) and not all(scored):
        raise InputError(f"{sum(scored)} of {len(scored)} passages bring a score; give all or none")
    found = candidates(given)
    if found and not any(c.document.contents.strip() for c in found):
        raise InputError(
            f"none of the {len(found)} passages has a text",
            remedy="a retriever knows the texts of documents given as a list, not of an index",
        )
    seen: set[str] = set()
    for doc_id in (c.document.id for c in found):
        if doc_id in seen:
            raise InputError(f"two passages have the id {doc_id!r}")
        seen.add(doc_id)
    if found and not any(c.score for c in found):
        scores = score_passages(query.text, [c.document.contents for c in found])
        return [Candidate(c.document, s) for c, s in zip(found, scores, strict=True)]
    return found


def candidates(passages: Iterable[Passage]) -> list[Candidate]:
    """Passages as candidates; one without an id gets its position, from 0."""
    return [candidate(str(i), passage) for i, passage in enumerate(_several(passages))]


def _several(passages: Iterable[Passage]) -> list[Passage]:
    if isinstance(passages, str | Mapping) or not isinstance(passages, Iterable):
        raise InputError(
            f"expected several passages, not {type(passages).__name__}", remedy="give a list"
        )
    return list(passages)


def candidate(position: str, passage: Passage) -> Candidate:
    """A passage as a candidate; `position` is its id where it has none."""
    if isinstance(passage, Candidate):
        return Candidate(passage.document, _number(position, passage.score))
    if isinstance(passage, Document):
        return Candidate(passage)
    if isinstance(passage, str):
        return Candidate(Document(position, passage))
    if not isinstance(passage, Mapping) or not isinstance(passage.get("text"), str):
        raise InputError(
            f"passage {position} is {_told(passage)}",
            remedy="give a str, a mapping with 'text', a Document or a Candidate",
        )
    fields = dict(passage)
    ids = (fields.pop("id", None), fields.pop("_id", None), position)
    given = next(value for value in ids if value is not None)
    text, title = cast("str", fields.pop("text")), str(fields.pop("title", "") or "")
    score = _number(position, fields.pop("score", 0.0))
    return Candidate(Document(str(given), text, title, fields), score)


def _number(position: str, score: object) -> float:
    if not isinstance(score, Real) or not math.isfinite(score):
        raise InputError(f"the score of passage {position} is not a finite number: {score!r}")
    return float(score)


def _told(passage: object) -> str:
    if isinstance(passage, Mapping):
        return f"a mapping with the keys {', '.join(map(str, passage)) or 'none'}"
    return type(passage).__name__


def hits(candidates: Sequence[Candidate], ordering: Ordering) -> tuple[Hit, ...]:
    """Hits in the order of an ordering; the score of the last is 1, of each one before 1 more."""
    return tuple(
        Hit(
            candidates[i].document,
            float(len(candidates) - place),
            place + 1,
            ordering.scores[i],
            i + 1,
            candidates[i].score,
            ordering.evidence[i] if ordering.evidence else None,
        )
        for place, i in enumerate(ordering.order)
    )
