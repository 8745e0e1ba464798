"""`llmrank rerank`: a first-stage run in, a run folder out."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from llmrank.cli import options as o
from llmrank.cli import screen

UNNAMED = Path("runs/unnamed")


def rerank(
    run: o.Run,
    corpus: o.Corpus,
    queries: o.Queries,
    method: Annotated[
        str | None,
        typer.Option(
            help="Such as sliding(window=20)@100; see llmrank methods.", show_default=False
        ),
    ] = None,
    model: o.Model = None,
    base_url: o.BaseUrl = None,
    limit: o.Limit = None,
    prompt: o.Prompt = None,
    passage_words: o.PassageWords = None,
    in_flight: o.InFlight = 32,
    max_calls: o.MaxCalls = None,
    max_tokens: o.MaxTokens = None,
    max_cost: o.MaxCost = None,
    max_seconds: o.MaxSeconds = None,
    prices: o.Prices = "",
    max_failures: o.MaxFailures = 0.1,
    out: o.Out = None,
    as_json: o.Json = False,
) -> None:
    """Rerank a first-stage run with a language model.

    Writes a run folder: manifest.json, run.trec, scores.jsonl, summary.json and the journal of all
    answers. Without --out the run goes to standard output and the folder is runs/unnamed. The same
    command again goes on where it stopped; with other parameters it starts afresh and still reuses
    every identical answer, also those of the runs beside it.
    """
    from llmrank import api, rerank, trec
    from llmrank.store import RunFolder

    settings = o.settings(
        model=model,
        base_url=base_url,
        prompt=prompt,
        passage_words=passage_words,
        in_flight=in_flight,
        max_calls=max_calls,
        max_tokens=max_tokens,
        max_cost=max_cost,
        max_seconds=max_seconds,
        prices=prices,
    )
    started = time.perf_counter()
    folder = RunFolder(out or UNNAMED)
    with trec.rereadable(run) as first, api.Session(settings, folder.journal()) as session:
        chosen = rerank.parse(method) if method else api.default_method(session.model.identity)
        session.check(chosen.family.asks)
        screen.note(f"{chosen} by {session.model.identity}, into {folder.path}")
        inputs = api.Inputs(api.RunInput(first, corpus, queries, limit), chosen.depth)
        with screen.progress("queries", len(inputs.queries)) as progress:
            tally = api.rerank_run(session, chosen, inputs, folder, progress=progress)
    screen.outcome(tally, time.perf_counter() - started)
    if as_json:
        typer.echo((folder.path / "summary.json").read_text(encoding="utf-8"), nl=False)
    elif out is None:
        with folder.run.open(encoding="utf-8") as lines:
            sys.stdout.writelines(lines)
    api.demand(tally, max_failures)
