"""`llmrank run`: search, augment and rerank as one run, on one line or in one TOML file."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

import llmrank.cli.options as o
import llmrank.cli.screen as screen
import llmrank.cli.search as search

UNNAMED = Path("runs/pipeline")


@o.with_model(embeds=True)
@search.with_searching
def run(
    settings: o.Settings,
    max_failures: float,
    how: search.Searching,
    corpus: o.Corpus,
    queries: o.Queries,
    pipeline: Annotated[
        str,
        typer.Argument(help="Such as 'bm25@100 >> query2doc >> adaptive@20', or a TOML file."),
    ],
    index: search.Index = None,
    limit: o.Limit = None,
    out: o.Out = None,
    as_json: o.Json = False,
) -> None:
    """Search, augment and rerank as one run, resumed and metered as one.

    A TOML file has the pipeline and any of the options by name (pipeline, corpus, queries, model,
    out ...); what is given on the command line goes before it, and it before the environment.
    Writes a run folder as `llmrank rerank` does, with the first stage in first.trec.
    """
    from llmrank import api
    from llmrank.store import RunFolder

    started = time.perf_counter()
    stages = api.parse_pipeline(pipeline)
    model = search.connected(settings, stages.needs)
    asked = search.read_queries(queries, limit)
    encoder, url = settings.encoder, settings.encoder_url
    retriever = search.open_retriever(
        corpus, stages.first_stage, index, encoder, url, how, texts=stages.shows_texts
    )
    folder = RunFolder(out or UNNAMED)
    dense = "dense" in stages.kinds
    with api.Session(settings, folder.journal(), model=model, embeds=dense) as session:
        screen.note(f"{stages} by {session.model.identity}, into {folder.path}")
        with screen.progress("queries", len(asked)) as progress:
            tally = api.run_pipeline(
                session,
                stages,
                retriever,
                asked,
                folder,
                sources={"corpus": corpus, "queries": queries},
                progress=progress,
            )
    screen.outcome(tally, session.sent, time.perf_counter() - started)
    if as_json:
        typer.echo((folder.path / "summary.json").read_text(encoding="utf-8"), nl=False)
    api.demand(tally, max_failures)
