"""`llmrank generate`: synthetic queries for the documents of a corpus."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

import llmrank.cli.options as o
import llmrank.cli.screen as screen
import llmrank.cli.search as search
from llmrank.errors import InputError

UNNAMED = Path("runs/generate")


@o.with_model()
def generate(
    corpus: o.Corpus,
    settings: o.Settings,
    max_failures: float,
    documents: Annotated[
        int, typer.Option(min=1, help="Write for N documents, drawn at random.")
    ] = 100,
    per_document: Annotated[int, typer.Option(min=1, help="Queries to write per document.")] = 1,
    round_trip: Annotated[
        int,
        typer.Option(min=1, help="Keep a query whose document BM25 finds among the first K."),
    ] = 1,
    examples: Annotated[
        str | None,
        typer.Option(help='JSONL of {"document", "query"}: examples shown to the model.'),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the choice of documents.")] = 0,
    index: search.Index = None,
    out: o.Out = None,
    as_json: o.Json = False,
) -> None:
    """Write queries for documents, keep those that find their document again.

    Writes examples.jsonl with the provenance of every example, dropped ones too, and the kept ones
    in BEIR layout: queries.jsonl and qrels/train.tsv.
    """
    from llmrank import api, trec
    from llmrank.backends import connect
    from llmrank.plan import Need, Write
    from llmrank.store import RunFolder
    from llmrank.synth.queries import TASK

    started = time.perf_counter()
    writer = connect(settings.model, base_url=settings.base_url)
    api.check(settings, writer, [Need(Write, task=TASK)])
    shown = api.demonstrations(examples) if examples else ()
    chosen = api.draw(trec.read_corpus(corpus), documents, seed)
    if not chosen:
        raise InputError("no document with a text", path=corpus)
    retriever = search.open_retriever(corpus, "bm25", index, None, None)
    recipe = api.Recipe(n=per_document, k=round_trip, examples=shown, seed=seed)
    folder = RunFolder(out or UNNAMED)
    screen.note(f"{len(chosen)} documents, {writer.identity}, into {folder.path}")
    with (
        api.Session(settings, folder.journal(), model=writer) as session,
        screen.progress("documents", len(chosen)) as progress,
    ):
        made, tally = api.generate_folder(
            session, chosen, retriever.find, recipe, folder, source=corpus, progress=progress
        )
    screen.outcome(tally, session.sent, time.perf_counter() - started)
    counts = api.funnel(made)
    screen.note(", ".join(f"{count} {name}" for name, count in counts.items()))
    if as_json:
        typer.echo((folder.path / "summary.json").read_text(encoding="utf-8"), nl=False)
    elif out is None:
        typer.echo((folder.path / "examples.jsonl").read_text(encoding="utf-8"), nl=False)
    api.demand(tally, max_failures)
