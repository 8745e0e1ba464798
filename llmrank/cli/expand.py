"""`llmrank expand`: queries rewritten by a language model, and what searching with them finds."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import llmrank.cli.options as o
import llmrank.cli.screen as screen
import llmrank.cli.search as search

if TYPE_CHECKING:
    from llmrank.api import Retriever
    from llmrank.evaluate import Qrels as Judgements
    from llmrank.types import Query

UNNAMED = Path("runs/expand")
SHOWN = 3
"""Queries that won and that lost the most, on the screen."""

Method = Annotated[str, typer.Option(help="Such as query2doc(n=1) or hyde(n=4).")]
Corpus = Annotated[str | None, typer.Option(help="Search this corpus with the expanded queries.")]
FirstStage = Annotated[
    str | None,
    typer.Option(help="bm25, dense or hybrid; by default what the method was made for."),
]
Qrels = Annotated[
    str | None,
    typer.Option(help="Judgements: what was won and lost against the plain queries, by what."),
]


@o.with_model(embeds=True)
@search.with_searching
def expand(
    queries: o.Queries,
    settings: o.Settings,
    max_failures: float,
    how: search.Searching,
    method: Method = "query2doc",
    corpus: Corpus = None,
    first_stage: FirstStage = None,
    index: search.Index = None,
    k: search.K = 100,
    qrels: Qrels = None,
    limit: o.Limit = None,
    out: o.Out = None,
    as_json: o.Json = False,
) -> None:
    """Expand queries with texts that a language model writes.

    Writes expansions.jsonl, and with --corpus run.trec. A query without a usable text is searched
    as it is, and says so.
    """
    from llmrank import api
    from llmrank import expand as expansion
    from llmrank.api.expansion import needs_of
    from llmrank.api.first_stage import searched_by
    from llmrank.store import RunFolder

    started = time.perf_counter()
    expander = expansion.parse(method)
    stage = first_stage or expander.kinds[0]
    kinds = searched_by(stage)
    needs = needs_of(expander, kinds)
    writer = search.connected(settings, needs)
    screen.note(f"{expander} by {writer.identity}, into {out or UNNAMED}")
    asked = search.read_queries(queries, limit)
    judged = _judged(qrels, asked, searched=corpus is not None)
    retriever = _opened(corpus, stage, index, settings, how, texts=expander.takes_texts)
    folder = RunFolder(out or UNNAMED)
    with (
        api.Session(settings, folder.journal(), model=writer, embeds="dense" in kinds) as session,
        screen.progress("queries", len(asked)) as progress,
    ):
        tally = api.expand_run(
            *(session, expander, asked, folder, retriever),
            first_stage=stage,
            source=queries,
            k=k,
            qrels=judged,
            progress=progress,
        )
    screen.outcome(tally, session.sent, time.perf_counter() - started)
    _show(folder.path, effects=bool(qrels), as_json=as_json, lines=out is None)
    api.demand(tally, max_failures)


def _judged(qrels: str | None, asked: list[Query], *, searched: bool) -> Judgements | None:
    from llmrank import trec
    from llmrank.api.expansion import check_judged

    judged = trec.read_qrels(qrels) if qrels else None
    check_judged(asked, judged, searched=searched)
    return judged


def _opened(
    corpus: str | None,
    stage: str,
    index: Path | None,
    settings: o.Settings,
    how: search.Searching,
    *,
    texts: bool,
) -> Retriever | None:
    if corpus is None:
        return None
    encoder, url = settings.encoder, settings.encoder_url
    return search.open_retriever(corpus, stage, index, encoder, url, how, texts=texts)


def _show(folder: Path, *, effects: bool, as_json: bool, lines: bool) -> None:
    """What goes to the screen, and to standard output: the summary, or the expansions."""
    if effects:
        _show_effects(folder)
    name = "summary.json" if as_json else "expansions.jsonl"
    if as_json or lines:
        typer.echo((folder / name).read_text(encoding="utf-8"), nl=False)


def _show_effects(folder: Path) -> None:
    """The paired test, and the queries that won and lost the most with what was added to them."""
    from llmrank import trec

    found = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["effect"]
    low, high = found["interval"] or (math.nan, math.nan)
    screen.note(
        f"{found['measure']} {found['mean_b']:.4f} plain, {found['mean_a']:.4f} expanded: "
        f"{found['difference']:+.4f} [{low:+.4f}, {high:+.4f}], p {found['p']:.4f}, "
        f"{found['wins']} won, {found['losses']} lost, {found['ties']} tied"
    )
    rows: list[dict[str, Any]] = list(trec.read_jsonl(folder / "effects.jsonl"))
    won = [row for row in rows[:SHOWN] if row["difference"] > 0]
    lost = [row for row in rows[::-1][:SHOWN] if row["difference"] < 0]
    for row in [*won, *lost]:
        words = " ".join(row["terms"][:10]) or " | ".join(row["texts"]) or row["note"]
        screen.note(f"  {row['difference']:+.3f} {row['text']!r}: {words[:160]!r}")
