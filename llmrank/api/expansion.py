"""Query augmentation run by a session: expansions, and the run that searching with them gives."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

import llmrank.trec as trec
from llmrank.api.effects import MEASURE, effects
from llmrank.api.first_stage import Indexed
from llmrank.api.retriever import Retriever
from llmrank.api.runs import Progress, fingerprint, summary, versions
from llmrank.api.session import Session
from llmrank.errors import InputError, SpecError
from llmrank.evaluate import Qrels
from llmrank.expand import Expander, Expansion, FirstStage, Kind, NoIndex
from llmrank.store import RunFolder
from llmrank.types import Query, Tally


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
    first = first or NoIndex(expander.kinds[0])
    check(session, expander, first.kinds)
    done: dict[int, Expansion] = {}
    total = Tally()

    def finished(key: int, expansion: Expansion, tally: Tally) -> None:
        nonlocal total
        done[key] = expansion
        total += tally
        if progress is not None:
            progress(len(done), total)

    # Read here, as what makes the queries may itself wait for the loop that the plans run on.
    asked = list(queries)
    for query in asked:
        if not query.text.strip():
            raise InputError(f"query {query.id!r} has no text")
    session.run_sync(((i, expander.plan(q, first)) for i, q in enumerate(asked)), finished)
    return [done[i] for i in range(len(done))], total


def check(session: Session, expander: Expander, kinds: frozenset[Kind]) -> None:
    """Raise unless the augmentation is for such an index and the models can answer what it asks."""
    if not kinds:
        raise SpecError(f"{expander.name} needs an index to search; an engine takes texts alone")
    for kind in kinds - set(expander.kinds):
        known = " or ".join(expander.kinds)
        raise SpecError(f"{expander.name} is for a first stage of {known}, not for {kind}")
    session.check(expander.needs(kinds))


def expand_run(
    session: Session,
    expander: Expander,
    queries: Sequence[Query],
    folder: RunFolder,
    retriever: Retriever | None = None,
    *,
    source: str | Path = "",
    k: int = 100,
    qrels: Qrels | None = None,
    progress: Progress | None = None,
) -> Tally:
    """Expand queries into a folder: `expansions.jsonl`, and with a retriever `run.trec`.

    With judgements beside it also `plain.trec`, what the plain queries find, and `effects.jsonl`,
    what was won and lost by which words, the largest gain first; the paired test over all judged
    queries stands in the summary.
    """
    if qrels is not None and retriever is None:
        raise InputError("judgements need a search", remedy="give a corpus too (--corpus)")
    started = time.time()
    first = Indexed(retriever, k) if retriever is not None else None
    folder.check("expansion")
    expansions, tally = expand(session, expander, queries, first, progress=progress)
    trec.write_jsonl(folder.path / "expansions.jsonl", map(record, expansions))
    if retriever is None:
        folder.run.unlink(missing_ok=True)
    else:
        groups = (
            (e.query.id, [(c.document.id, c.score) for c in retriever.search_expanded(e, k)])
            for e in expansions
        )
        trec.write_run(folder.run, groups, tag=str(expander).replace(" ", ""))
    effect = {}
    if retriever is not None and qrels is not None:
        effect = _effects(folder, expansions, retriever, k, qrels)
    manifest = {
        "expansion": str(expander),
        **session.describe(),
        "data": {"queries": fingerprint(source, "queries.jsonl")},
        "k": k,
        "versions": versions(),
    }
    folder.write("manifest.json", manifest)
    told = summary(session, tally, len(expansions), started, 0)
    folder.write("summary.json", {**told, **effect})
    return tally


def _effects(
    folder: RunFolder, expansions: Sequence[Expansion], retriever: Retriever, k: int, qrels: Qrels
) -> dict[str, object]:
    """Write what the augmentation did to the judged queries; the comparison for the summary."""
    queries = [expansion.query for expansion in expansions]
    hits = retriever.search_many(queries, k)
    plain = {
        query.id: [(one.document.id, one.score) for one in found]
        for query, found in zip(queries, hits, strict=True)
    }
    trec.write_run(folder.path / "plain.trec", plain.items(), tag=retriever.first_stage)
    augmented = dict(trec.read_run(folder.run))
    rows, compared = effects(expansions, plain, augmented, qrels)
    trec.write_jsonl(folder.path / "effects.jsonl", (row.record() for row in rows))
    return {"effect": {"measure": MEASURE, **asdict(compared)}}


def record(expansion: Expansion) -> dict[str, object]:
    """One line of `expansions.jsonl`: the query, what was written for it or added to it, and every
    outcome."""
    weights = {term: weight for view in expansion.views for term, weight in view.terms.items()}
    return {
        "_id": expansion.query.id,
        "text": expansion.query.text,
        "expanded": expansion.expanded,
        "note": expansion.note,
        "texts": list(expansion.texts),
        "terms": dict(sorted(weights.items(), key=lambda item: (-item[1], item[0]))),
        "samples": [
            {"status": str(a.status), "problem": a.problem, "reply": a.reply, "key": a.key}
            for a in expansion.answers
        ],
    }
