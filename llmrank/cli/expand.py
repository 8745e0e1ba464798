"""`llmrank expand`: queries rewritten by a language model, and what searching with them finds."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Annotated, Any

import typer

import llmrank.cli.options as o
import llmrank.cli.screen as screen
import llmrank.cli.search as search

UNNAMED = Path("runs/expand")


SHOWN = 3
"""Queries that won and that lost the most, on the screen."""


@o.with_model(embeds=True)
def expand(
    queries: o.Queries,
    settings: o.Settings,
    max_failures: float,
    method: Annotated[str, typer.Option(help="Such as query2doc(n=1) or hyde(n=4).")] = "query2doc",
    corpus: Annotated[
        str | None, typer.Option(help="Search this corpus with the expanded queries.")
    ] = None,
    first_stage: Annotated[
        str | None,
        typer.Option(help="bm25, dense or hybrid; by default what the method was made for."),
    ] = None,
    index: search.Index = None,
    k: search.K = 100,
    qrels: Annotated[
        str | None,
        typer.Option(help="Judgements: what was won and lost against the plain queries, by what."),
    ] = None,
    limit: o.Limit = None,
    out: o.Out = None,
    as_json: o.Json = False,
) -> None:
    """Expand queries with texts that a language model writes.

    Writes expansions.jsonl, and with --corpus run.trec. A query without a usable text is searched
    as it is, and says so.
    """
    from itertools import islice

    from llmrank import api, trec
    from llmrank import expand as expansion
    from llmrank.backends import connect
    from llmrank.plan import Embed
    from llmrank.store import RunFolder

    expander = expansion.parse(method)
    started = time.perf_counter()
    stage = first_stage or expander.kinds[0]
    dense = stage != "bm25"
    writer = connect(settings.model, base_url=settings.base_url)
    writes = [needed for needed in expander.needs(frozenset()) if needed.ask is not Embed]
    api.check(settings, writer, writes)
    screen.note(f"{expander} by {writer.identity}, into {out or UNNAMED}")
    asked = list(islice(trec.read_queries(queries), limit))
    retriever = None
    if corpus is not None:
        retriever = search.open_retriever(
            corpus, stage, index, settings.encoder, settings.encoder_url
        )
    folder = RunFolder(out or UNNAMED)
    with (
        api.Session(settings, folder.journal(), model=writer, embeds=dense) as session,
        screen.progress("queries", len(asked)) as progress,
    ):
        tally = api.expand_run(
            session,
            expander,
            asked,
            folder,
            retriever,
            source=queries,
            k=k,
            qrels=trec.read_qrels(qrels) if qrels else None,
            progress=progress,
        )
    screen.outcome(tally, session.meter, time.perf_counter() - started)
    if qrels:
        _show_effects(folder.path)
    if as_json:
        typer.echo((folder.path / "summary.json").read_text(encoding="utf-8"), nl=False)
    elif out is None:
        lines = (folder.path / "expansions.jsonl").read_text(encoding="utf-8")
        typer.echo(lines, nl=False)
    api.demand(tally, max_failures)


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
