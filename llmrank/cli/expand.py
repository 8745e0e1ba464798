"""`llmrank expand`: queries rewritten by a language model, and what searching with them finds."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from llmrank.cli import options as o
from llmrank.cli import screen, search

UNNAMED = Path("runs/expand")


def expand(
    queries: o.Queries,
    method: Annotated[str, typer.Option(help="Such as query2doc(n=1) or hyde(n=4).")] = "query2doc",
    corpus: Annotated[
        str | None, typer.Option(help="Search this corpus with the expanded queries.")
    ] = None,
    index: search.Index = None,
    k: search.K = 100,
    model: o.Model = None,
    base_url: o.BaseUrl = None,
    encoder: o.Encoder = None,
    encoder_url: o.EncoderUrl = None,
    limit: o.Limit = None,
    prompt: o.Prompt = None,
    in_flight: o.InFlight = 32,
    max_calls: o.MaxCalls = None,
    max_tokens: o.MaxTokens = None,
    max_cost: o.MaxCost = None,
    prices: o.Prices = "",
    max_failures: o.MaxFailures = 0.1,
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
    from llmrank.store import RunFolder

    expander = expansion.parse(method)
    settings = o.settings(
        model=model,
        base_url=base_url,
        encoder=encoder,
        encoder_url=encoder_url,
        prompt=prompt,
        in_flight=in_flight,
        max_calls=max_calls,
        max_tokens=max_tokens,
        max_cost=max_cost,
        prices=prices,
    )
    started = time.perf_counter()
    folder = RunFolder(out or UNNAMED)
    first_stage = expander.family.first_stage
    asked = list(islice(trec.read_queries(queries), limit))
    retriever = None
    if corpus is not None:
        retriever = search.open_retriever(corpus, first_stage, index, encoder, encoder_url)
    with api.Session(settings, folder.journal(), embeds=first_stage == "dense") as session:
        screen.note(f"{expander} by {session.model.identity}, into {folder.path}")
        with screen.progress("queries", len(asked)) as progress:
            tally = api.expand_run(
                session, expander, asked, folder, retriever, source=queries, k=k, progress=progress
            )
    screen.outcome(tally, time.perf_counter() - started)
    if as_json:
        typer.echo((folder.path / "summary.json").read_text(encoding="utf-8"), nl=False)
    elif out is None:
        lines = (folder.path / "expansions.jsonl").read_text(encoding="utf-8")
        typer.echo(lines, nl=False)
    api.demand(tally, max_failures)
