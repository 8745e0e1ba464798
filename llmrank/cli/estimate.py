"""`llmrank estimate`: what a rerank run, or a pipeline, would cost; nothing is sent."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import llmrank.cli.options as o
import llmrank.cli.run as whole
import llmrank.cli.screen as screen
import llmrank.cli.search as search
from llmrank.cli.rerank import UNNAMED
from llmrank.errors import SpecError

if TYPE_CHECKING:
    from llmrank.api import Estimate
    from llmrank.rerank import Ranker
    from llmrank.store import Journal

Run = Annotated[str | None, *o.Run.__metadata__]
Pipeline = Annotated[
    str | None,
    typer.Option(
        "--pipeline",
        help="Instead of --run and --method: such as 'bm25@100 >> query2doc >> adaptive@20', with "
        "the flags of llmrank run.",
    ),
]


@o.with_model(embeds=True)
@search.with_searching
def estimate(
    corpus: o.Corpus,
    queries: o.Queries,
    settings: o.Settings,
    how: search.Searching,
    run: Run = None,
    method: o.Method = None,
    pipeline: Pipeline = None,
    index: search.Index = None,
    limit: o.Limit = None,
    out: o.Out = None,
    as_json: o.Json = False,
) -> None:
    """Count the calls, tokens, money and rounds of a run before anything is sent.

    Takes the flags of the rerank command, or with --pipeline those of the run command, which serves
    augmentations too ('dense >> hyde'). Answers that the journal in --out or those beside it have
    are known and cost nothing. The estimate is of the whole run: caps do not change it, and nothing
    is probed. Methods whose calls depend on the answers have a range of calls, from a model that
    confirms the first-stage order to the most that there can be; rounds, tokens and cost are those
    of the former.
    """
    if (run is None) == (pipeline is None) or (pipeline is not None and method is not None):
        raise SpecError("give --run, with --method if you like, or --pipeline")
    if pipeline is not None:
        name, found = _of_pipeline(settings, pipeline, corpus, queries, how, index, limit, out)
    else:
        name, found = _of_run(settings, str(run), corpus, queries, method, limit, out)
    kind = "method" if pipeline is None else "pipeline"
    if as_json:
        screen.show({kind: name, **asdict(found)})
        return
    screen.table(["", ""], [[kind, name], *_rows(found, settings)])


def _of_run(
    settings: o.Settings,
    run: str,
    corpus: str,
    queries: str,
    method: str | None,
    limit: int | None,
    out: Path | None,
) -> tuple[str, Estimate]:
    from llmrank import api, rerank, trec
    from llmrank.backends import connect

    model = connect(settings.model, base_url=settings.base_url)
    chosen: Ranker = rerank.parse(method) if method else api.default_method(model)
    with trec.rereadable(run) as first, _known(out or UNNAMED) as journal:
        inputs = api.Inputs(api.RunInput(first, corpus, queries, limit), chosen.depth)
        return str(chosen), api.estimate(settings, chosen, inputs, journal, model=model)


def _of_pipeline(
    settings: o.Settings,
    pipeline: str,
    corpus: str,
    queries: str,
    how: search.Searching,
    index: Path | None,
    limit: int | None,
    out: Path | None,
) -> tuple[str, Estimate]:
    from llmrank import api, trec

    stages = api.parse_pipeline(pipeline)
    model = search.connected(settings, stages.needs, sends=False)
    asked = search.read_queries(queries, limit)
    documents = list(trec.read_corpus(corpus))
    first = api.stand_in(stages, documents, index=index, **search.chosen(how))
    with _known(out or whole.UNNAMED) as journal:
        found = api.estimate_pipeline(settings, stages, first, asked, journal, model=model)
    return str(stages), found


@contextmanager
def _known(folder: Path) -> Iterator[Journal]:
    """What a run into a folder would know: a journal of its own, which leaves the folder be."""
    from tempfile import TemporaryDirectory

    from llmrank.store import JOURNAL, Journal, beside

    also = [folder / JOURNAL, *beside(folder)]
    with (
        TemporaryDirectory(prefix="llmrank-") as scratch,
        closing(Journal(Path(scratch) / JOURNAL, also)) as journal,
    ):
        yield journal


def _rows(found: Estimate, settings: o.Settings) -> list[list[str]]:
    # The fewest calls are those of a model that confirms the first-stage order.
    more = f" to {found.calls_at_most:,}" if found.calls_at_most > found.calls else ""
    priced = settings.caps.prompt_price or settings.caps.completion_price
    rows = [
        ["model", found.model],
        ["queries", f"{found.queries:,}"],
        ["calls", f"{found.calls:,}{more}"],
        ["answers known", f"{found.known:,}"],
        ["rounds, longest query", f"{found.rounds:,}"],
        ["prompt tokens", f"{found.usage.prompt_tokens:,}"],
        ["  counted by", found.counting],
        ["completion tokens, at most", f"{found.usage.completion_tokens:,}"],
        [
            "cost, with replies at their limit",
            f"{found.cost:.4f}" if priced else "give --prices IN,OUT",
        ],
        ["passages cut", f"{found.passages_cut:,}"],
        ["prompts that cannot fit", f"{found.too_long:,}"],
    ]
    if found.embedding_calls:
        rows.append(["embedding requests", f"{found.embedding_calls:,}"])
        rows.append(["embedding tokens, about", f"{found.embedding_tokens:,}"])
    if settings.rpm or settings.tpm:
        least = f"{found.seconds_at_least / 60:,.0f}"
        rows.append(["minutes, at least, by --rpm and --tpm", least])
    return rows
