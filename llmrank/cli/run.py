"""`llmrank run`: search, augment and rerank as one run, on one line or in one TOML file."""

from __future__ import annotations

import time
import tomllib
from pathlib import Path
from typing import Annotated, Any

import click
import typer

import llmrank.cli.options as o
import llmrank.cli.screen as screen
import llmrank.cli.search as search
from llmrank.errors import InputError

UNNAMED = Path("runs/pipeline")


def _declared(ctx: click.Context, given: str | None) -> str | None:
    """The pipeline itself; from a file it comes with the defaults of the options."""
    if given is None or not given.endswith(".toml"):
        return given
    try:
        content: dict[str, Any] = tomllib.loads(Path(given).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot be read: {error}", path=given) from error
    named = {name.replace("-", "_"): value for name, value in content.items()}
    known = {parameter.name for parameter in ctx.command.params}
    for name in named.keys() - known:
        options = ", ".join(sorted(filter(None, known)))
        raise InputError(f"no option {name!r}", path=given, remedy=f"there are: {options}")
    pipeline = named.pop("pipeline", None)
    if not isinstance(pipeline, str):
        raise InputError("no pipeline", path=given, remedy='pipeline = "bm25@100 >> adaptive@20"')
    ctx.default_map = {**(ctx.default_map or {}), **named}
    return pipeline


@o.with_model(embeds=True)
def run(
    settings: o.Settings,
    max_failures: float,
    corpus: o.Corpus,
    queries: o.Queries,
    pipeline: Annotated[
        str,
        typer.Argument(
            callback=_declared,
            is_eager=True,
            help="Such as 'bm25@100 >> query2doc >> adaptive@20', or a TOML file.",
        ),
    ],
    index: search.Index = None,
    limit: o.Limit = None,
    out: o.Out = None,
    as_json: o.Json = False,
) -> None:
    """Search, augment and rerank as one run, resumed and metered as one.

    A TOML file has the pipeline and any of the options by name (pipeline, corpus, queries, model,
    out ...); what is given on the command line goes before it. Writes a run folder as `llmrank
    rerank` does, with the first stage in first.trec.
    """
    from itertools import islice

    from llmrank import api, trec
    from llmrank.store import RunFolder

    started = time.perf_counter()
    stages = api.parse_pipeline(pipeline)
    asked = list(islice(trec.read_queries(queries), limit))
    # The reranker shows the texts, so the documents are kept.
    retriever = api.Retriever(
        list(trec.read_corpus(corpus)),
        first_stage=stages.first_stage,  # type: ignore[arg-type]  # checked by the retriever
        index=index,
        encoder=settings.encoder,
        encoder_url=settings.encoder_url,
    )
    folder = RunFolder(out or UNNAMED)
    dense = stages.first_stage != "bm25"
    with api.Session(settings, folder.journal(), embeds=dense) as session:
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
    screen.outcome(tally, session.meter, time.perf_counter() - started)
    if as_json:
        typer.echo((folder.path / "summary.json").read_text(encoding="utf-8"), nl=False)
    api.demand(tally, max_failures)
