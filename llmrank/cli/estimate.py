"""`llmrank estimate`: what a rerank run would cost; nothing is sent."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from llmrank.cli import options as o
from llmrank.cli import screen


def estimate(
    run: o.Run,
    corpus: o.Corpus,
    queries: o.Queries,
    method: Annotated[
        str | None, typer.Option(help="Such as sliding(window=20)@100.", show_default=False)
    ] = None,
    model: o.Model = None,
    base_url: o.BaseUrl = None,
    limit: o.Limit = None,
    prompt: o.Prompt = None,
    passage_words: o.PassageWords = None,
    prices: o.Prices = "",
    out: o.Out = None,
    as_json: o.Json = False,
) -> None:
    """Count the calls, tokens, money and rounds of a rerank run before anything is sent.

    Give the flags of the rerank command; with its --out, answers already in that folder's journal,
    or in those beside it, are known and cost nothing.
    """
    from llmrank import api, rerank, trec
    from llmrank.backends import connect
    from llmrank.store import JOURNAL, RunFolder

    settings = o.settings(
        model=model,
        base_url=base_url,
        prompt=prompt,
        passage_words=passage_words,
        prices=prices,
    )
    identity = connect(model, base_url=base_url).identity
    chosen = rerank.parse(method) if method else api.default_method(identity)
    journal = RunFolder(out).journal() if out and (out / JOURNAL).exists() else None
    with trec.rereadable(run) as first:
        inputs = api.Inputs(api.RunInput(first, corpus, queries, limit), chosen.depth)
        found = api.estimate(settings, chosen, inputs, journal)
    if as_json:
        screen.show({"method": str(chosen), "model": identity, **asdict(found)})
        return
    screen.table(
        ["", ""],
        [
            ["method", str(chosen)],
            ["model", identity],
            ["queries", f"{found.queries:,}"],
            ["calls to send", f"{found.calls:,}"],
            ["answers known", f"{found.known:,}"],
            ["rounds, longest query", f"{found.rounds:,}"],
            ["prompt tokens", f"{found.usage.prompt_tokens:,}"],
            ["completion tokens, at most", f"{found.usage.completion_tokens:,}"],
            ["cost, at most", f"{found.cost:.4f}" if prices else "give --prices IN,OUT"],
            ["passages cut", f"{found.passages_cut:,}"],
        ],
    )
