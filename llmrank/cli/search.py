"""`llmrank search`: queries and a corpus in, a first-stage run out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
Analyzer = Annotated[
    str | None,
    typer.Option(
        help="BM25 analysis: english (as Lucene's, the default) or plain.", show_default=False
    ),
]
Fusion = Annotated[
    str, typer.Option(help="How hybrid fuses: rrf (k=60), minmax, zscore or product (LaPraDoR's).")
]
DenseWeight = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=1,
        help="Weight of dense in hybrid, from 0 to 1; by default .5. product has none.",
        show_default=False,
    ),
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


def search(
    corpus: o.Corpus,
    queries: o.Queries,
    first_stage: FirstStage = "bm25",
    index: Index = None,
    k: K = 100,
    limit: o.Limit = None,
    encoder: o.Encoder = None,
    encoder_url: o.EncoderUrl = None,
    analyzer: Analyzer = None,
    fusion: Fusion = "rrf",
    dense_weight: DenseWeight = None,
    tune: Tune = None,
    out: RunFile = "-",
    as_json: o.Json = False,
) -> None:
    """Search a corpus with BM25 (Lucene's formula, k1=.9, b=.4), dense vectors, or both.

    Dense search is exact. Without --index the index is made in memory and thrown away. With --json
    the hits are printed as JSON, and the run is written only where --out names a file.
    """
    from llmrank import trec

    if tune is not None and (
        first_stage != "hybrid" or fusion == "product" or dense_weight is not None
    ):
        raise InputError(
            "--tune chooses the weight of dense search",
            remedy="use it with --first-stage hybrid, a fusion that has weights, "
            "and without --dense-weight",
        )
    qrels = None if tune is None else trec.read_qrels(tune)
    asked = read_queries(queries, limit)
    retriever = open_retriever(
        corpus, first_stage, index, encoder, encoder_url, analyzer, fusion, dense_weight
    )
    if qrels is not None:
        groups, tag = _tuned(retriever, asked, qrels, k)
    else:
        tag = first_stage if first_stage != "hybrid" else f"hybrid-{fusion}"
        if dense_weight is not None:
            tag += f"-{dense_weight:g}"
        groups = [
            (query.id, [(c.document.id, c.score) for c in found])
            for query, found in zip(asked, retriever.search_many(asked, k), strict=True)
        ]
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
    """The first queries of a collection, all without a limit."""
    from itertools import islice

    from llmrank import trec

    return list(islice(trec.read_queries(queries), limit))


def open_retriever(
    corpus: str,
    first_stage: str,
    index: Path | None,
    encoder: str | None,
    encoder_url: str | None,
    analyzer: str | None = None,
    fusion: str = "rrf",
    dense_weight: float | None = None,
    *,
    texts: bool = False,
) -> Retriever:
    """A retriever over a corpus; an index folder that exists must have been built from it.

    With `texts` it keeps the documents.
    """
    from llmrank import trec
    from llmrank.api import Retriever

    documents = trec.read_corpus(corpus)
    return Retriever(
        list(documents) if texts else documents,
        first_stage=first_stage,  # type: ignore[arg-type]  # checked by the retriever
        index=index,
        encoder=encoder,
        encoder_url=encoder_url,
        analyzer=analyzer,
        fusion=fusion,  # type: ignore[arg-type]  # checked by the retriever
        dense_weight=dense_weight,
    )


def connected(settings: o.Settings, needs: Sequence[Need]) -> Model:
    """The language model, which can answer what is needed beside vectors.

    Where that is nothing, none is connected.
    """
    from llmrank import api
    from llmrank.backends import connect
    from llmrank.backends.nobody import Nobody
    from llmrank.plan import Embed

    worded = [needed for needed in needs if needed.ask is not Embed]
    if not worded:
        return Nobody()
    model = connect(settings.model, base_url=settings.base_url)
    api.check(settings, model, worded)
    return model
