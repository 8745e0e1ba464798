"""`llmrank expand`: queries rewritten by a language model, and what searching with them finds."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

import llmrank.cli.options as o
import llmrank.cli.screen as screen
import llmrank.cli.search as search

UNNAMED = Path("runs/expand")


@o.with_model(embeds=True)
def expand(
    queries: o.Queries,
    settings: o.Settings,
    max_failures: float,
    method: Annotated[str, typer.Option(help="Such as query2doc(n=1) or hyde(n=4).")] = "query2doc",
    corpus: Annotated[
        str | None, typer.Option(help="Search this corpus with the expanded queries.")
    ] = None,
    index: search.Index = None,
    k: search.K = 100,
    limit: o.Limit = None,
    out: o.Out = None,
    as_json: o.Json = False,
) -> None:
    """Expand queries with texts that a language model writes.

    Writes expansions.jsonl, and with --corpus run.trec: query2doc searches BM25, hyde searches
    dense vectors. A query without a usable text is searched as it is, and says so.
    """
    from itertools import islice

    from llmrank import api, trec
    from llmrank import expand as expansion
    from llmrank.backends import connect
    from llmrank.plan import Need, Write
    from llmrank.store import RunFolder

    expander = expansion.parse(method)
    started = time.perf_counter()
    first_stage = expander.family.first_stage
    writer = connect(settings.model, base_url=settings.base_url)
    api.check(settings, writer, [Need(Write, task=expander.name)])
    screen.note(f"{expander} by {writer.identity}, into {out or UNNAMED}")
    asked = list(islice(trec.read_queries(queries), limit))
    retriever = None
    if corpus is not None:
        retriever = search.open_retriever(
            corpus, first_stage, index, settings.encoder, settings.encoder_url
        )
    folder = RunFolder(out or UNNAMED)
    dense = first_stage == "dense"
    with (
        api.Session(settings, folder.journal(), model=writer, embeds=dense) as session,
        screen.progress("queries", len(asked)) as progress,
    ):
        tally = api.expand_run(
            session, expander, asked, folder, retriever, source=queries, k=k, progress=progress
        )
    screen.outcome(tally, session.meter, time.perf_counter() - started)
    if as_json:
        typer.echo((folder.path / "summary.json").read_text(encoding="utf-8"), nl=False)
    elif out is None:
        lines = (folder.path / "expansions.jsonl").read_text(encoding="utf-8")
        typer.echo(lines, nl=False)
    api.demand(tally, max_failures)
