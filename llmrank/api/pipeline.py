"""First stage, augmentation and reranking as one run: `bm25 >> query2doc >> adaptive@20`."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import llmrank.expand as augmentations
import llmrank.rerank as methods
import llmrank.spec as spec
import llmrank.trec as trec
from llmrank.api.expansion import check, embedded, needs_of, record, with_texts
from llmrank.api.first_stage import SEARCHES, Indexed, searched_by
from llmrank.api.retriever import Retriever
from llmrank.api.runs import Progress, Result, fingerprint, summary, versions
from llmrank.api.session import Session
from llmrank.errors import SpecError
from llmrank.expand import Expander, Expansion, Kind, plain
from llmrank.plan import Embed, Need, Plan, staged
from llmrank.rerank import Method, Ranker
from llmrank.store import RunFolder
from llmrank.types import Candidate, Ordering, Query, Tally

DEPTH = 100


@dataclass(frozen=True, slots=True)
class Pipeline:
    """What is done with a query: searched, augmented or not, reranked or not.

    Its `str` can be parsed again.
    """

    first_stage: str
    depth: int = DEPTH
    expander: Expander | None = None
    method: Ranker | None = None

    def __str__(self) -> str:
        stages = [f"{self.first_stage}@{self.depth}", self.expander, self.method]
        return " >> ".join(str(stage) for stage in stages if stage is not None)

    def __post_init__(self) -> None:
        _ = self.needs  # raises where the augmentation is for another first stage

    @property
    def kinds(self) -> frozenset[Kind]:
        """What its first stage searches by."""
        return searched_by(self.first_stage)

    @property
    def needs(self) -> list[Need]:
        """What has to be asked."""
        embeds = [Need(Embed)] if "dense" in self.kinds else []
        own = needs_of(self.expander, self.kinds) if self.expander else embeds
        return [*own, *(self.method.needs if self.method else ())]

    @property
    def shows_texts(self) -> bool:
        """Whether it needs the texts of documents."""
        augments = self.expander is not None and self.expander.takes_texts
        return self.method is not None or augments

    def plan(self, query: Query, first: Indexed) -> Plan[Found]:
        """Everything for one query."""
        if self.expander is not None:
            expansion = yield from staged(self.expander.plan(query, first), str(self.expander))
        else:
            expansion = yield from plain(query, first, note="")
        hits = first.search(expansion, self.depth)
        if self.method is None or not hits:
            settled = Ordering(tuple(range(len(hits))), (None,) * len(hits))
            return Found(expansion, hits, settled)
        candidates = [Candidate(first.document(name), score) for name, score in hits]
        ranking = self.method.plan(query, candidates)
        if isinstance(self.method, Method):  # the stages of a cascade are marked already
            ranking = staged(ranking, str(self.method))
        return Found(expansion, hits, (yield from ranking))


class Found(NamedTuple):
    """What became of a query: what was searched with, the hits, and their order."""

    expansion: Expansion
    hits: Sequence[tuple[str, float]]
    ordering: Ordering


def parse(text: str) -> Pipeline:
    """Read a pipeline: a first stage, at most one augmentation, then reranking methods."""
    stages = [stage.strip() for stage in spec.parts(text, ">>")]
    first = spec.split(stages[0])
    if first.name not in SEARCHES or first.parameters or first.inner:
        known = ", ".join(SEARCHES)
        raise SpecError(f"a pipeline begins with a first stage ({known}), not with {stages[0]!r}")
    rest = stages[1:]
    expander = None
    if rest and spec.split(rest[0]).name in augmentations.METHODS:
        expander = augmentations.parse(rest.pop(0))
    for stage in rest:
        if spec.split(stage).name in augmentations.METHODS:
            raise SpecError(f"{stage!r} augments: it must follow the first stage, and alone")
    depth = DEPTH if first.depth is None else first.depth
    if depth < 1:
        raise SpecError("a first stage finds at least one document: write bm25@100")
    method = methods.parse(" >> ".join(rest)) if rest else None
    return Pipeline(first.name, depth, expander, method)


def run(
    session: Session,
    pipeline: Pipeline,
    retriever: Retriever,
    queries: Iterable[Query],
    folder: RunFolder,
    *,
    sources: Mapping[str, str | Path] | None = None,
    progress: Progress | None = None,
) -> Tally:
    """Run a pipeline into a folder, which holds what `rerank_run` and `expand_run` write.

    Answers that the folder's journal has are not asked for again, so the same call after a crash
    goes on where it stopped. The retriever must know the texts where there is something to rerank.
    """
    started = time.time()
    _check(session, pipeline, retriever)
    folder.check("pipeline")
    asked = with_texts(queries)
    found: dict[str, Found] = {}
    result = Result()

    def finished(query_id: str, done: Found, tally: Tally) -> None:
        found[query_id] = done
        result.add(query_id, done.ordering, tally)
        if progress is not None:
            progress(len(result), result.tally)

    first = retriever.indexed(pipeline.depth)
    session.run_sync(((query.id, pipeline.plan(query, first)) for query in asked), finished)

    hits = {query.id: tuple(found[query.id].hits) for query in asked}
    result.write(folder, lambda: iter(hits.items()), tag=str(pipeline).replace(" ", ""))
    trec.write_run(folder.path / "first.trec", hits.items(), tag=pipeline.first_stage)
    path = folder.path / "expansions.jsonl"
    if pipeline.expander is not None:
        trec.write_jsonl(path, (record(found[query.id].expansion) for query in asked))
    else:
        path.unlink(missing_ok=True)
    data = {name: fingerprint(source, f"{name}.jsonl") for name, source in (sources or {}).items()}
    manifest = {
        "pipeline": str(pipeline),
        "search": retriever.describe(),
        **session.describe(),
        "data": data,
        "versions": versions(),
    }
    folder.write("manifest.json", manifest)
    told = summary(session, result.tally, len(result), started, 0)
    folder.write("summary.json", {**told, **embedded(session, retriever)})
    return result.tally


def _check(session: Session, pipeline: Pipeline, retriever: Retriever) -> None:
    """Raise unless the retriever is what the pipeline names, and its models can answer."""
    first = retriever.indexed(pipeline.depth)
    if first.kinds != pipeline.kinds:
        given = retriever.first_stage if first.kinds else "an engine"
        raise SpecError(f"the pipeline is for {pipeline.first_stage}, the retriever is {given}")
    check(session, first, pipeline.needs, texts=pipeline.shows_texts)
