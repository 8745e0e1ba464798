"""`llmrank generate`: synthetic training data from the documents of a corpus, by a recipe."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import llmrank.cli.options as o
import llmrank.cli.screen as screen
import llmrank.cli.search as search

if TYPE_CHECKING:
    from llmrank.api import Retriever
    from llmrank.synth import HeldOut, Recipe

UNNAMED = Path("runs/generate")
RECIPE = "random@100 >> write >> length >> copied >> round_trip >> unique"


@o.with_model(embeds=True)
@search.with_searching
def generate(
    settings: o.Settings,
    max_failures: float,
    how: search.Searching,
    corpus: o.Corpus,
    recipe: Annotated[
        str, typer.Argument(help="Such as 'random@100 >> write >> mine', or a TOML file.")
    ] = RECIPE,
    examples: Annotated[
        str | None,
        typer.Option(help='JSONL of {"document", "query"}: examples shown to the model.'),
    ] = None,
    choose: Annotated[
        int,
        typer.Option(
            min=0,
            help="Show N of the examples: those behind which the model finds others likeliest.",
        ),
    ] = 0,
    held_out: Annotated[
        str | None,
        typer.Option(help="Test data in BEIR's layout: nothing near to it is kept (`guard`)."),
    ] = None,
    held_out_qrels: Annotated[
        str | None, typer.Option(help="Judgements of the test data; their documents are left out.")
    ] = None,
    index: search.Index = None,
    out: o.Out = None,
    as_json: o.Json = False,
) -> None:
    """Make training data: choose documents, write queries, filter, find negatives, label.

    A TOML file has the recipe and any of the options by name (recipe, corpus, model, out ...); what
    is given on the command line goes before it, and it before the environment. The same command
    goes on where it was stopped. Writes examples.jsonl with the provenance of every example,
    dropped ones too, the kept ones in BEIR's layout (queries.jsonl, qrels/), and report.html;
    `llmrank export` makes of it what trainers read, `llmrank show` retells one example.
    """
    from llmrank import api, trec
    from llmrank.plan import Embed
    from llmrank.store import RunFolder

    started = time.perf_counter()
    steps = api.parse_recipe(recipe)
    needs = api.recipe_needs(steps, choose=bool(choose))
    model = search.connected(settings, needs)
    embeds = any(needed.ask is Embed for needed in needs)
    shown = api.shots(examples) if examples else ()
    test = _held_out(held_out, held_out_qrels, corpus)
    sources = {"corpus": corpus, "queries": held_out, "qrels": held_out_qrels}
    world = api.Corpus(_retriever(steps, corpus, index, settings, how), test)
    api.check_recipe(steps, world, shown)
    folder = RunFolder(out or UNNAMED)
    with (
        api.Session(settings, folder.journal(), model=model, embeds=embeds) as session,
        screen.steps() as progress,
    ):
        screen.note(f"{steps} by {session.model.identity}, into {folder.path}")
        tally, funnel = api.synthesize(
            session,
            steps,
            trec.read_corpus(corpus),
            folder,
            world=world,
            shown=shown,
            choose=choose,
            sources={name: source for name, source in sources.items() if source is not None},
            progress=progress,
        )
    screen.outcome(tally, session.sent, time.perf_counter() - started)
    for passed in funnel:
        screen.note(f"  {passed.kept:,} of {passed.came:,} {passed.step}")
    if as_json or out is None:
        printed = folder.path / ("summary.json" if as_json else "examples.jsonl")
        typer.echo(printed.read_text(encoding="utf-8"), nl=False)
    api.demand(tally, max_failures)


def _retriever(
    steps: Recipe, corpus: str, index: Path | None, settings: o.Settings, how: search.Searching
) -> Retriever | None:
    """What the recipe searches, if it does."""
    from llmrank import api

    stage = api.recipe_first_stage(steps)
    if stage is None:
        return None
    encoder, url = settings.encoder, settings.encoder_url
    return search.open_retriever(corpus, stage, index, encoder, url, how, texts=True)


def _held_out(queries: str | None, qrels: str | None, corpus: str) -> HeldOut | None:
    """Test queries, and the documents that are relevant to one of them, some in the corpus."""
    from llmrank import trec
    from llmrank.errors import InputError
    from llmrank.synth import HeldOut

    if queries is None:
        if qrels is not None:
            raise InputError("judgements of no test data", remedy="name it with --held-out")
        return None
    judged = trec.read_qrels(qrels) if qrels is not None else {}
    relevant = {name for grades in judged.values() for name, grade in grades.items() if grade > 0}
    if relevant and all(document.id not in relevant for document in trec.read_corpus(corpus)):
        told = "none of the documents that are relevant here is in the corpus"
        raise InputError(told, path=qrels, remedy="give judgements of documents of this corpus")
    return HeldOut(tuple(trec.read_queries(queries)), frozenset(relevant))
