"""Query augmentation run by a session: expansions, and the run that searching with them gives."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

import llmrank.trec as trec
from llmrank.api.effects import MEASURE, effects, weighted
from llmrank.api.first_stage import Indexed, searched_by
from llmrank.api.retriever import Retriever
from llmrank.api.runs import Progress, fingerprint, summary, versions
from llmrank.api.session import Session
from llmrank.errors import InputError, SpecError
from llmrank.evaluate import Qrels, Run
from llmrank.expand import Expander, Expansion, FirstStage, Kind, NoIndex
from llmrank.plan import Need
from llmrank.store import RunFolder
from llmrank.types import Query, Tally

PLAIN, EFFECTS = "plain.trec", "effects.jsonl"


def expand(
    session: Session,
    expander: Expander,
    queries: Iterable[Query],
    first: FirstStage | None = None,
    *,
    progress: Progress | None = None,
) -> tuple[list[Expansion], Tally]:
    """Expand queries for a first stage; expansions stand in the order of the queries.

    Without one they are made for the first kind of index that the augmentation is for.
    """
    first = first or _unsearched(expander)
    needs = needs_of(expander, first.kinds)
    check(session, first, needs, texts=expander.takes_texts)
    done: dict[int, Expansion] = {}
    total = Tally()

    def finished(key: int, expansion: Expansion, tally: Tally) -> None:
        nonlocal total
        done[key] = expansion
        total += tally
        if progress is not None:
            progress(len(done), total)

    asked = with_texts(queries)
    session.run_sync(((i, expander.plan(q, first)) for i, q in enumerate(asked)), finished)
    return [done[i] for i in range(len(done))], total


def with_texts(queries: Iterable[Query]) -> list[Query]:
    """The queries as a list; `InputError` where one has no text.

    They are read before the plans run: what makes them may itself wait for the loop of these.
    """
    asked = list(queries)
    for query in asked:
        if not query.text.strip():
            raise InputError(f"query {query.id!r} has no text")
    return asked


def check(session: Session, first: FirstStage, needs: Collection[Need], *, texts: bool) -> None:
    """Raise unless the models can answer what is needed of this first stage.

    Its vectors must come from the session's encoder, and with `texts` its texts be known.
    """
    session.check(needs)
    if isinstance(first, Indexed):
        encoder = session.encoder or session.model
        first.check(encoder.identity, texts=texts)


def needs_of(expander: Expander, kinds: frozenset[Kind]) -> list[Need]:
    """What it asks for an index that is searched by these; `SpecError` where it is for another."""
    if not kinds:
        raise SpecError(f"{expander.name} needs an index to search; an engine takes texts alone")
    for kind in kinds - set(expander.kinds):
        known = " or ".join(expander.kinds)
        raise SpecError(f"{expander.name} is for a first stage of {known}, not for {kind}")
    return expander.needs(kinds)


def expand_run(
    session: Session,
    expander: Expander,
    queries: Sequence[Query],
    folder: RunFolder,
    retriever: Retriever | None = None,
    *,
    first_stage: str | None = None,
    source: str | Path = "",
    k: int = 100,
    qrels: Qrels | None = None,
    progress: Progress | None = None,
) -> Tally:
    """Expand queries into a folder: `expansions.jsonl`, and with a retriever `run.trec`.

    Without one they are made for `first_stage` (bm25, dense or hybrid), by default the first that
    the augmentation is for. With judgements beside it also `plain.trec`, what the plain queries
    find, and `effects.jsonl`, what was won and lost by which words, the largest gain first; the
    paired test over all judged queries stands in the summary.
    """
    check_judged(queries, qrels, searched=retriever is not None)
    started = time.time()
    first = retriever.indexed(k) if retriever is not None else _unsearched(expander, first_stage)
    folder.check("expansion")
    expansions, tally = expand(session, expander, queries, first, progress=progress)
    trec.write_jsonl(folder.path / "expansions.jsonl", map(record, expansions))
    # What an earlier run with a corpus or with judgements has left is not about this one.
    for name, source_of in ((folder.run.name, retriever), (PLAIN, qrels), (EFFECTS, qrels)):
        if source_of is None:
            (folder.path / name).unlink(missing_ok=True)
    effect = {}
    if isinstance(first, Indexed):
        found = {e.query.id: first.search(e, k) for e in expansions}
        trec.write_run(folder.run, found.items(), tag=str(expander).replace(" ", ""))
        if retriever is not None and qrels is not None:
            effect = _effects(folder, expansions, found, retriever, first, qrels)
    manifest = {
        "expansion": str(expander),
        **({} if retriever is None else {"search": retriever.describe()}),
        **session.describe(),
        "data": {"queries": fingerprint(source, "queries.jsonl")},
        "k": k,
        "versions": versions(),
    }
    folder.write("manifest.json", manifest)
    told = summary(session, tally, len(expansions), started, 0)
    folder.write("summary.json", {**told, **embedded(session, retriever), **effect})
    return tally


def embedded(session: Session, retriever: Retriever | None) -> dict[str, int]:
    """What was sent to the embedding model, by the session and by the retriever together."""
    meters = [session.encoder_meter] + ([] if retriever is None else [retriever.meter])
    return {
        "embedding_requests": sum(meter.requests for meter in meters),
        "embedding_tokens": sum(meter.usage.prompt_tokens for meter in meters),
    }


def check_judged(queries: Sequence[Query], qrels: Qrels | None, *, searched: bool) -> None:
    """`InputError` where judgements are given that nothing can be measured by."""
    if qrels is None:
        return
    if not searched:
        raise InputError("judgements need a search", remedy="give a corpus too (--corpus)")
    if not any(query.id in qrels for query in queries):
        raise InputError("none of the queries is judged", remedy="give judgements of these queries")


def _unsearched(expander: Expander, first_stage: str | None = None) -> NoIndex:
    """The place of a first stage that queries are only written for."""
    return NoIndex(searched_by(first_stage) if first_stage else frozenset(expander.kinds[:1]))


def _effects(
    folder: RunFolder,
    expansions: Sequence[Expansion],
    augmented: Run,
    retriever: Retriever,
    first: Indexed,
    qrels: Qrels,
) -> dict[str, object]:
    """Write what the augmentation did to the judged queries; the comparison for the summary."""
    queries = [expansion.query for expansion in expansions]
    hits = retriever.search_many(queries, first.depth)
    plain = {
        query.id: [(one.document.id, one.score) for one in found]
        for query, found in zip(queries, hits, strict=True)
    }
    trec.write_run(folder.path / PLAIN, plain.items(), tag=retriever.first_stage)
    rows, compared = effects(expansions, plain, augmented, qrels, first.analyze)
    trec.write_jsonl(folder.path / EFFECTS, (row.record() for row in rows))
    return {"effect": {"measure": MEASURE, **asdict(compared)}}


def record(expansion: Expansion) -> dict[str, object]:
    """One line of `expansions.jsonl`: the query, what was written for it or added to it, and every
    outcome."""
    return {
        "_id": expansion.query.id,
        "text": expansion.query.text,
        "expanded": expansion.expanded,
        "note": expansion.note,
        "texts": list(expansion.texts),
        "terms": weighted(expansion),
        "samples": [
            {"status": str(a.status), "problem": a.problem, "reply": a.reply, "key": a.key}
            for a in expansion.answers
        ],
    }
