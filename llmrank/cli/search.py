"""`llmrank search`: queries and a corpus in, a first-stage run out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import llmrank.cli.options as o
import llmrank.cli.screen as screen
from llmrank.errors import InputError

if TYPE_CHECKING:
    from llmrank.api import Retriever
    from llmrank.backends import Model
    from llmrank.evaluate import Qrels
    from llmrank.plan import Need
    from llmrank.types import Query

FirstStage = Annotated[str, typer.Option(help="bm25, dense or hybrid (both, fused).")]
Index = Annotated[
    Path | None, typer.Option(help="Folder of the index: built there once, then opened from there.")
]
Tune = Annotated[
    str | None,
    typer.Option(
        help="Judgements to choose the weight of dense by: for each fifth of the judged queries "
        "the one that is best on the others."
    ),
]
K = Annotated[int, typer.Option("--k", "-k", min=1, help="Documents per query.")]
RunFile = Annotated[str, typer.Option("--out", "-o", help="TREC run to write; - prints it.")]


INDEX = "Index"


def _option(
    *names: str, help: str, least: float | None = None, most: float | None = None
) -> object:
    return typer.Option(*names, help=help, rich_help_panel=INDEX, min=least, max=most)


_SEARCHING: Mapping[str, tuple[object, object]] = {
    "analyzer": (
        Annotated[
            str | None,
            _option("--analyzer", help="BM25 analysis: english (as Lucene's, default) or plain."),
        ],
        None,
    ),
    "bm25": (
        Annotated[
            str | None,
            _option("--bm25", help="lucene (default), robertson, atire, bm25l or bm25+."),
        ],
        None,
    ),
    "k1": (
        Annotated[float | None, _option("--k1", least=0, help="Of BM25; by default .9.")],
        None,
    ),
    "b": (
        Annotated[float | None, _option("--b", least=0, most=1, help="Of BM25; by default .4.")],
        None,
    ),
    "delta": (
        Annotated[
            float | None, _option("--delta", least=0, help="Of bm25l and bm25+; by default .5.")
        ],
        None,
    ),
    "fusion": (
        Annotated[
            str,
            _option(
                "--fusion",
                help="How hybrid fuses: rrf (k=60), minmax, zscore or product (LaPraDoR's).",
            ),
        ],
        "rrf",
    ),
    "dense_weight": (
        Annotated[
            float | None,
            _option(
                "--dense-weight",
                least=0,
                most=1,
                help="Weight of dense in hybrid, from 0 to 1; by default .5. product has none.",
            ),
        ],
        None,
    ),
}


@dataclass(frozen=True, slots=True)
class Searching:
    """How a corpus is indexed and searched; what is None is the retriever's own choice."""

    analyzer: str | None = None
    bm25: str | None = None
    k1: float | None = None
    b: float | None = None
    delta: float | None = None
    fusion: str = "rrf"
    dense_weight: float | None = None


def with_searching(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of BM25 and of hybrid search, as one `how` argument."""
    return o.with_options(_SEARCHING, ("how",), lambda given: {"how": Searching(**given)}, command)


@with_searching
def search(
    corpus: o.Corpus,
    queries: o.Queries,
    how: Searching,
    first_stage: FirstStage = "bm25",
    index: Index = None,
    k: K = 100,
    limit: o.Limit = None,
    encoder: o.Encoder = None,
    encoder_url: o.EncoderUrl = None,
    tune: Tune = None,
    out: RunFile = "-",
    as_json: o.Json = False,
) -> None:
    """Search a corpus with BM25, dense vectors, or both.

    Dense search is exact. Without --index the index is made in memory and thrown away; one in a
    folder must have been built from the same corpus in the same way. With --json the hits are
    printed as JSON, and the run is written only where --out names a file.
    """
    from llmrank import trec

    weighted = how.dense_weight is not None
    if tune is not None and (first_stage != "hybrid" or how.fusion == "product" or weighted):
        raise InputError(
            "--tune chooses the weight of dense search",
            remedy="use it with --first-stage hybrid, a fusion that has weights, "
            "and without --dense-weight",
        )
    qrels = None if tune is None else trec.read_qrels(tune)
    asked = read_queries(queries, limit)
    retriever = open_retriever(corpus, first_stage, index, encoder, encoder_url, how)
    built = retriever.meter.requests
    if qrels is not None:
        groups, tag = _tuned(retriever, asked, qrels, k)
    else:
        tag = first_stage if first_stage != "hybrid" else f"hybrid-{how.fusion}"
        if how.dense_weight is not None:
            tag += f"-{how.dense_weight:g}"
        groups = [
            (query.id, [(c.document.id, c.score) for c in found])
            for query, found in zip(asked, retriever.search_many(asked, k), strict=True)
        ]
    if sent := retriever.meter.requests - built:
        screen.note(f"queries: {sent:,} embedding requests")
    if as_json:
        screen.show(
            [
                {"query": query, "document": document, "rank": rank, "score": score}
                for query, hits in groups
                for rank, (document, score) in enumerate(hits, start=1)
            ]
        )
    if out != "-" or not as_json:
        trec.write_run(out, groups, tag=tag)
    if out != "-":
        screen.note(f"{len(asked)} queries searched, run in {out}")


def _tuned(
    retriever: Retriever, asked: list[Query], qrels: Qrels, k: int
) -> tuple[list[tuple[str, list[tuple[str, float]]]], str]:
    """What a search with tuned weights finds, and its tag; the weights are told."""
    from llmrank import api

    tuned = api.search_tuned(retriever, asked, qrels, k)
    weights = " ".join(f"{weight:g}" for weight in tuned.weights)
    screen.note(
        f"weight of dense by fold: {weights} (each best in nDCG@10 on the other folds; "
        f"{tuned.judged} judged queries)"
    )
    return list(tuned.found.items()), f"hybrid-{retriever.fusion}-tuned"


def read_queries(queries: str, limit: int | None) -> list[Query]:
    """The first queries of a collection, all without a limit; `InputError` for one without text."""
    from itertools import islice

    from llmrank import trec
    from llmrank.api.expansion import with_texts

    return with_texts(islice(trec.read_queries(queries), limit))


def open_retriever(
    corpus: str,
    first_stage: str,
    index: Path | None,
    encoder: str | None,
    encoder_url: str | None,
    how: Searching = Searching(),
    *,
    texts: bool = False,
) -> Retriever:
    """A retriever over a corpus; an index folder that exists must have been built from it.

    With `texts` it keeps the documents. What building the index has sent is told.
    """
    from llmrank import trec
    from llmrank.api import Retriever

    documents = trec.read_corpus(corpus)
    retriever = Retriever(
        list(documents) if texts else documents,
        first_stage=first_stage,  # type: ignore[arg-type]  # checked by the retriever
        index=index,
        encoder=encoder,
        encoder_url=encoder_url,
        **chosen(how),
    )
    if sent := retriever.meter.requests:
        tokens = retriever.meter.usage.prompt_tokens
        screen.note(f"index: {sent:,} embedding requests, {tokens:,} tokens")
    return retriever


def chosen(how: Searching) -> dict[str, Any]:
    """How a corpus is searched, as arguments for a retriever, which checks them."""
    from llmrank.retrieve import BM25

    scoring = BM25(how.analyzer, how.bm25, how.k1, how.b, how.delta)
    return {"bm25": scoring, "fusion": how.fusion, "dense_weight": how.dense_weight}


def connected(settings: o.Settings, needs: Sequence[Need], *, sends: bool = True) -> Model:
    """The language model, which can answer what is needed beside vectors.

    Where that is nothing, none is connected. One that `sends` must have a key.
    """
    from llmrank import api
    from llmrank.api.session import demand_keys
    from llmrank.backends import connect
    from llmrank.backends.nobody import Nobody
    from llmrank.plan import Embed

    worded = [needed for needed in needs if needed.ask is not Embed]
    model = connect(settings.model, base_url=settings.base_url) if worded else Nobody()
    api.check(settings, model, worded)
    if sends:
        demand_keys(model)
    return model
