"""Reranking a run file into a run folder."""

from __future__ import annotations

import hashlib
import platform
import sys
import time
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from itertools import zip_longest
from pathlib import Path

import llmrank.trec as trec
from llmrank.api.session import Session
from llmrank.errors import InputError, StoppedAtCap, TooManyFailures
from llmrank.plan import Plan
from llmrank.rerank import Ranker
from llmrank.store import RunFolder
from llmrank.types import Candidate, Document, Ordering, Query, Tally

Progress = Callable[[int, Tally], None]
"""Called when a query ends: how many have ended, and what they cost together."""

Groups = Callable[[], Iterator[tuple[str, trec.Hits]]]
"""Query ids with their first-stage hits, best first; read anew at every call."""


@dataclass(frozen=True, slots=True)
class RunInput:
    """A first-stage run with the queries and texts it names; `limit` takes its first queries."""

    run: str | Path
    corpus: str | Path
    queries: str | Path
    limit: int | None = None


@dataclass(slots=True)
class Inputs:
    """Texts and queries that a run names, down to the depth at which texts are needed.

    The run itself is read again query by query and never kept.
    """

    source: RunInput
    depth: int
    texts: dict[str, Document] = field(default_factory=dict)
    queries: dict[str, Query] = field(default_factory=dict)
    _most: tuple[str, trec.Hits] = field(default=("", ()), init=False)

    def __post_init__(self) -> None:
        named: list[str] = []
        wanted: set[str] = set()
        for query_id, hits in self.groups():
            named.append(query_id)
            wanted.update(doc for doc, _ in hits[: self.depth])
            self._most = max(self._most, (query_id, hits), key=lambda group: len(group[1]))
        self.queries = _queries(self.source.queries, named)
        self.texts = trec.read_texts(self.source.corpus, wanted)
        missing = sorted(wanted - self.texts.keys())
        if missing:
            raise InputError(
                f"{len(missing)} of {len(wanted)} documents that the run names have no text, "
                f"among them {', '.join(missing[:5])}",
                path=self.source.corpus,
                remedy="is it the collection that the run was made from?",
            )

    @property
    def empty(self) -> int:
        """How many of the texts are empty."""
        return sum(not document.contents.strip() for document in self.texts.values())

    def groups(self) -> Iterator[tuple[str, trec.Hits]]:
        """Query id and hits, best first, in the order of the run."""
        for number, group in enumerate(trec.read_run(self.source.run), start=1):
            if self.source.limit is not None and number > self.source.limit:
                return
            yield group

    def candidates(self, hits: trec.Hits) -> list[Candidate]:
        """Hits as candidates; those below the depth have no text, as none is needed."""
        return [Candidate(self.texts.get(i) or Document(i, ""), score) for i, score in hits]

    def attempt(self, method: Ranker) -> None:
        """Raise `SpecError` where the method cannot rank the query with the most candidates.

        Methods that cut documents may still meet longer ones at another query, which the error
        then names.
        """
        query_id, hits = self._most
        if hits:
            method.attempt(self.queries[query_id], self.candidates(hits))

    def plans(self, method: Ranker) -> Iterator[tuple[str, Plan[Ordering]]]:
        """One plan a query, made when the engine asks for it."""
        for query_id, hits in self.groups():
            yield query_id, method.plan(self.queries[query_id], self.candidates(hits))


def _queries(source: str | Path, named: list[str]) -> dict[str, Query]:
    wanted = set(named)
    found = {query.id: query for query in trec.read_queries(source) if query.id in wanted}
    for query_id in named:
        if query_id not in found:
            raise InputError(f"the run's query {query_id!r} is not among the queries", path=source)
        if not found[query_id].text.strip():
            raise InputError(f"query {query_id!r} has no text", path=source)
    return found


class Result:
    """Orders and scores of finished queries, kept as compact arrays."""

    def __init__(self) -> None:
        self.tally = Tally()
        self._orders: dict[str, array[int]] = {}
        self._scores: dict[str, tuple[float | None, ...]] = {}
        self._evidence: dict[str, tuple[str | None, ...]] = {}

    def add(self, query_id: str, ordering: Ordering, tally: Tally) -> None:
        """Keep one query's result; scores only down to the last one that was given."""
        judged = [i for i, score in enumerate(ordering.scores) if score is not None]
        self._scores[query_id] = ordering.scores[: judged[-1] + 1] if judged else ()
        self._evidence[query_id] = ordering.evidence
        self._orders[query_id] = array("I", ordering.order)
        self.tally += tally

    def __len__(self) -> int:
        return len(self._orders)

    def write(self, folder: RunFolder, groups: Groups, tag: str) -> None:
        """Write `run.trec` and `scores.jsonl`, queries in the order of the first-stage run."""
        trec.write_run(folder.run, self._ranked(groups), tag=tag)
        trec.write_jsonl(folder.scores, self._records(groups))

    def _ranked(self, groups: Groups) -> Iterator[tuple[str, list[tuple[str, float]]]]:
        for query_id, hits in groups():
            order = self._orders[query_id]
            yield query_id, [(hits[i][0], float(len(order) - n)) for n, i in enumerate(order)]

    def _records(self, groups: Groups) -> Iterator[dict[str, object]]:
        for query_id, hits in groups():
            judged = zip_longest(self._scores[query_id], self._evidence[query_id])
            for i, (score, passage) in enumerate(judged):
                if score is not None or passage is not None:
                    doc_id, first_stage = hits[i]
                    yield {
                        "query": query_id,
                        "document": doc_id,
                        "score": score,
                        "first_stage_rank": i + 1,
                        "first_stage_score": first_stage,
                        **({} if passage is None else {"passage": passage}),
                    }


def rerank_run(
    session: Session,
    method: Ranker,
    inputs: Inputs,
    folder: RunFolder,
    *,
    progress: Progress | None = None,
) -> Tally:
    """Rerank a run into a folder: `manifest.json`, `run.trec`, `scores.jsonl`, `summary.json`.

    Answers that the folder's journal has are not asked for again, so the same call after a crash
    goes on where it stopped.
    """
    session.check(method.needs)
    inputs.attempt(method)
    if Path(inputs.source.run).resolve() == folder.run.resolve():
        raise InputError(
            "this run would be overwritten", path=folder.run, remedy="choose another run folder"
        )
    started = time.time()
    result = Result()

    def finished(query_id: str, ordering: Ordering, tally: Tally) -> None:
        result.add(query_id, ordering, tally)
        if progress is not None:
            progress(len(result), result.tally)

    folder.check("method")
    session.run_sync(inputs.plans(method), finished)
    # Only now, so that a run that fails leaves the results of an earlier one as they were.
    result.write(folder, inputs.groups, tag=str(method).replace(" ", ""))
    folder.write("manifest.json", manifest(session, {"method": str(method)}, inputs.source))
    folder.write("summary.json", summary(session, result.tally, len(result), started, inputs.empty))
    return result.tally


def demand(tally: Tally, max_failures: float) -> None:
    """Raise where a run must not pass for a good one; its results are kept all the same.

    `TooManyFailures` when more than the share `max_failures` of the asks gave nothing usable,
    `StoppedAtCap` when a cap kept asks from being sent.
    """
    if tally.asks and not tally.failures <= max_failures * tally.asks:
        found = ", ".join(f"{count} {status}" for status, count in tally.outcomes.items())
        first = "".join(f"; first {status}: {said}" for status, said in tally.problems.items())
        raise TooManyFailures(
            f"{tally.failures} of {tally.asks} answers gave nothing usable ({found}); "
            f"the limit is {max_failures:.0%} (--max-failures){first}"
        )
    if tally.unasked:
        raise StoppedAtCap(
            f"stopped at a cap with {tally.unasked} asks unsent; the order so far is written, and "
            "the same command goes on from there"
        )


def manifest(session: Session, asked: Mapping[str, object], source: RunInput) -> dict[str, object]:
    """What a run depends on: model, prompts, data by content, versions."""
    data = {
        "run": fingerprint(source.run),
        "corpus": fingerprint(source.corpus, "corpus.jsonl"),
        "queries": fingerprint(source.queries, "queries.jsonl"),
    }
    return {
        **asked,
        **session.describe(),
        "data": data,
        "limit": source.limit,
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that answers may depend on."""
    found = {"python": platform.python_version(), "platform": sys.platform}
    for name in ("llmrank", "openai", "torch", "transformers", "bm25s", "sentence-transformers"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def fingerprint(source: str | Path, inside: str = "") -> dict[str, str]:
    """Name and SHA-256 of a file, or of the file `inside` a folder; only the name without one."""
    path = Path(source)
    told = {"name": str(source) if str(source) == "-" else path.name}
    files = [path / inside, path / f"{inside}.gz"] if path.is_dir() else [path]
    for file in filter(Path.is_file, files):
        with file.open("rb") as stream:
            told["sha256"] = hashlib.file_digest(stream, "sha256").hexdigest()
        break
    return told


def summary(
    session: Session, tally: Tally, queries: int, started: float, empty: int
) -> dict[str, object]:
    """What a run did: outcomes, calls, requests, tokens, time, money where prices are known.

    Requests, tokens, money and seconds are of this invocation; `reused` and the tokens named so
    are what the journal answered and an earlier one paid for. Failed requests are those to the
    model and to the encoder.
    """
    meter, caps = session.meter, session.settings.caps
    return {
        "queries": queries,
        "outcomes": {str(status): count for status, count in tally.outcomes.items()},
        "problems": {str(status): said for status, said in tally.problems.items()},
        "asks": tally.asks,
        "reused": tally.reused,
        "requests": meter.requests,
        "failed_requests": dict(session.sent.faults.most_common()),
        "cancelled_requests": meter.cancelled,
        "rounds": tally.rounds,
        "reused_prompt_tokens": tally.reused_usage.prompt_tokens,
        "reused_completion_tokens": tally.reused_usage.completion_tokens,
        "prompt_tokens": meter.usage.prompt_tokens,
        "completion_tokens": meter.usage.completion_tokens,
        "cached_tokens": meter.usage.cached_tokens,
        "cost": caps.price(meter.usage) if caps.prompt_price or caps.completion_price else None,
        "embedding_requests": session.encoder_meter.requests,
        "embedding_tokens": session.encoder_meter.usage.prompt_tokens,
        "passages_cut": tally.cut,
        "empty_documents": empty,
        "model_seconds": round(meter.seconds, 3),
        "seconds": round(time.time() - started, 3),
        "complete": not tally.unasked,
        "stages": {stage: _stage(cost) for stage, cost in tally.stages.items()},
    }


def _stage(cost: Tally) -> dict[str, object]:
    """One stage of a cascade; its tokens are those of its answers, reused ones included."""
    usage = cost.usage + cost.reused_usage
    return {
        "asks": cost.asks,
        "reused": cost.reused,
        "rounds": cost.rounds,
        "outcomes": {str(status): count for status, count in cost.outcomes.items()},
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
    }
