"""Query augmentation run by a session: expansions, and the run that searching with them gives."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import llmrank.trec as trec
from llmrank.api.retriever import Retriever
from llmrank.api.runs import Progress, fingerprint, summary, versions
from llmrank.api.session import Session
from llmrank.errors import InputError
from llmrank.expand import Expander, Expansion
from llmrank.plan import Embed, Need, Write
from llmrank.store import RunFolder
from llmrank.types import Query, Tally


def expand(
    session: Session,
    expander: Expander,
    queries: Iterable[Query],
    *,
    progress: Progress | None = None,
) -> tuple[list[Expansion], Tally]:
    """Expand queries; expansions stand in the order of the queries."""
    check(session, expander)
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
    session.run_sync(((i, expander.plan(q)) for i, q in enumerate(asked)), finished)
    return [done[i] for i in range(len(done))], total


def check(session: Session, expander: Expander) -> None:
    """Raise unless the session's model and encoder can answer what an expansion asks."""
    session.check([Need(Write, task=expander.name)])
    if expander.family.first_stage == "dense":
        session.check([Need(Embed)])


def expand_run(
    session: Session,
    expander: Expander,
    queries: Sequence[Query],
    folder: RunFolder,
    retriever: Retriever | None = None,
    *,
    source: str | Path = "",
    k: int = 100,
    progress: Progress | None = None,
) -> Tally:
    """Expand queries into a folder: `expansions.jsonl`, and with a retriever `run.trec`."""
    started = time.time()
    check(session, expander)
    folder.check("expansion")
    expansions, tally = expand(session, expander, queries, progress=progress)
    trec.write_jsonl(folder.path / "expansions.jsonl", map(record, expansions))
    if retriever is None:
        folder.run.unlink(missing_ok=True)
    else:
        groups = (
            (e.query.id, [(c.document.id, c.score) for c in retriever.search_expanded(e, k)])
            for e in expansions
        )
        trec.write_run(folder.run, groups, tag=str(expander).replace(" ", ""))
    manifest = {
        "expansion": str(expander),
        **session.describe(),
        "data": {"queries": fingerprint(source, "queries.jsonl")},
        "k": k,
        "versions": versions(),
    }
    folder.write("manifest.json", manifest)
    folder.write("summary.json", summary(session, tally, len(expansions), started, 0))
    return tally


def record(expansion: Expansion) -> dict[str, object]:
    """One line of `expansions.jsonl`: the query, what was written for it, and every outcome."""
    return {
        "_id": expansion.query.id,
        "text": expansion.query.text,
        "expanded": expansion.expanded,
        "texts": list(expansion.texts),
        "samples": [
            {"status": str(a.status), "problem": a.problem, "reply": a.reply, "key": a.key}
            for a in expansion.answers
        ],
    }
