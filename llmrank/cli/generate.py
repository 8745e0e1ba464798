"""`llmrank generate`: synthetic queries for the documents of a corpus."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from llmrank.cli import options as o
from llmrank.cli import screen, search
from llmrank.errors import InputError

UNNAMED = Path("runs/generate")


def generate(
    corpus: o.Corpus,
    documents: Annotated[int, typer.Option(help="Write for N documents, drawn at random.")] = 100,
    per_document: Annotated[int, typer.Option(help="Queries to write per document.")] = 1,
    round_trip: Annotated[
        int, typer.Option(help="Keep a query whose document BM25 finds among the first K.")
    ] = 1,
    examples: Annotated[
        str | None,
        typer.Option(help='JSONL of {"document", "query"}: examples shown to the model.'),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the choice of documents.")] = 0,
    index: search.Index = None,
    model: o.Model = None,
    base_url: o.BaseUrl = None,
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
    """Write queries for documents, keep those that find their document again.

    Writes examples.jsonl with the provenance of every example, dropped ones too, and the kept ones
    in BEIR layout: queries.jsonl and qrels/train.tsv.
    """
    from llmrank import api, trec
    from llmrank.store import RunFolder

    settings = o.settings(
        model=model,
        base_url=base_url,
        prompt=prompt,
        in_flight=in_flight,
        max_calls=max_calls,
        max_tokens=max_tokens,
        max_cost=max_cost,
        prices=prices,
    )
    started = time.perf_counter()
    folder = RunFolder(out or UNNAMED)
    chosen = api.draw(trec.read_corpus(corpus), documents, seed)
    if not chosen:
        raise InputError("no document with a text", path=corpus)
    retriever = search.open_retriever(corpus, "bm25", index, None, None)
    shown = api.demonstrations(examples) if examples else ()
    recipe = api.Recipe(n=per_document, k=round_trip, examples=shown, seed=seed)
    with api.Session(settings, folder.journal()) as session:
        screen.note(f"{len(chosen)} documents, {session.model.identity}, into {folder.path}")
        with screen.progress("documents", len(chosen)) as progress:
            made, tally = api.generate_folder(
                session, chosen, retriever.find, recipe, folder, source=corpus, progress=progress
            )
    screen.outcome(tally, time.perf_counter() - started)
    counts = api.funnel(made)
    screen.note(", ".join(f"{count} {name}" for name, count in counts.items()))
    if as_json:
        typer.echo((folder.path / "summary.json").read_text(encoding="utf-8"), nl=False)
    elif out is None:
        typer.echo((folder.path / "examples.jsonl").read_text(encoding="utf-8"), nl=False)
    api.demand(tally, max_failures)
