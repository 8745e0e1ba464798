"""Hard negatives that a first stage finds, and what all stages that label passages share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from itertools import islice
from typing import Any, ClassVar

from llmrank.errors import SpecError
from llmrank.plan import Plan
from llmrank.synth.base import SOURCE, Example, Passage, Stage, World, index_of
from llmrank.synth.text import normalised
from llmrank.types import Candidate, Document


@dataclass(frozen=True)
class Mine(Stage):
    """The `n` best documents that a first stage finds and that are not too near to the source.

    Of the first `depth` found by `by` (bm25, dense, hybrid) that do not stand beside the query yet
    the first `skip` are passed over. Negatives are those that score at most `margin` times what the
    source does in the same list; of a score below zero it is 2 - `margin` times, so that a margin
    below 1 always asks for less than the source has. What is nearer stays beside the query without
    a label, and so does a negative of an earlier `mine` that this one finds too near. The scores of
    `hybrid` are those of the fusion: of reciprocal ranks a margin is one of ranks. Of several
    sources the lowest score holds.

    Where no source is among the `depth` found, all that is found scores more than it: nothing is
    mined, and the first `n` stay without a label. With `margin=inf` everything is far enough.
    Sources and other positive passages are never mined, nor documents of the same text (lower case,
    no punctuation), and nothing stands twice. Fewer than `least` negatives, those of earlier stages
    counted, drop the example; before a stage that labels again, `least=0` keeps it.
    """

    name: ClassVar[str] = "mine"
    paper: ClassVar[str] = "NV-Retriever, arXiv 2407.15831"

    _: KW_ONLY
    by: str = "bm25"
    n: int = 8
    depth: int = 100
    skip: int = 0
    margin: float = 0.95
    least: int = 1

    def check(self) -> None:
        """Raise `SpecError` for an index that is none and for numbers that leave nothing."""
        index_of(self.by)
        if self.n < 1 or not 0 <= self.skip < self.depth:
            raise SpecError("mine: n must be at least 1, skip at least 0 and below depth")
        if not self.margin > 0 or self.least < 0:
            raise SpecError("mine: margin must be above 0, least at least 0")

    @property
    def searches(self) -> frozenset[str]:
        """What the query is searched by."""
        return index_of(self.by)

    def plan(self, example: Example, world: World) -> Plan[list[Candidate]]:
        """One search; documents that are relevant to held-out queries are not found."""
        found = yield from world.search(example.query, self.depth, self.by)
        kept_out = world.held_out.documents if world.held_out is not None else frozenset()
        return [one for one in found if one.document.id not in kept_out]

    def settle(self, example: Example, found: Any, memory: Any) -> Example:  # noqa: ANN401
        """The value is the number of negatives; the note says where the source was found."""
        example = with_sources(example)
        rank, bound = self._bound(example, found)
        mined = self._mined(islice(_fresh(example, found), self.skip, None), bound)
        known = self._looked_at(example, found, bound)
        where = f"source at rank {rank}" if rank else f"source not among the first {self.depth}"
        unsure = sum(passage.label is None for passage in mined)
        note = f"{where}, without a label: {unsure}"
        return kept(replace(example, passages=(*known, *mined)), self, self.least, note)

    def _bound(self, example: Example, found: Sequence[Candidate]) -> tuple[int, float | None]:
        """The rank of the source (0: not found) and the highest score that a negative may have."""
        sources = [span.document for span in example.sources]
        ids, texts = {document.id for document in sources}, _texts_of(sources)
        ranked = [(one.score, rank, one.document) for rank, one in enumerate(found, start=1)]
        own = [(score, rank) for score, rank, document in ranked if document.id in ids]
        if not own:
            # An index that holds a text once may have it under another id.
            own = [(score, rank) for score, rank, other in ranked if texts & _texts(other)]
        score, rank = min(own, default=(0.0, 0))
        if math.isinf(self.margin):
            return rank, math.inf
        return rank, (self.margin if score > 0 else 2 - self.margin) * score if rank else None

    def _mined(self, fresh: Iterable[Candidate], bound: float | None) -> list[Passage]:
        """The passages that are too near, without a label, and `n` negatives behind them."""
        mined: list[Passage] = []
        wanted = self.n
        for one in fresh:
            label = 0 if bound is not None and one.score <= bound else None
            mined.append(Passage(one.document, self.by, label, {self.by: one.score}))
            wanted -= label == 0 or bound is None
            if not wanted:
                break
        return mined

    def _looked_at(
        self, example: Example, found: Sequence[Candidate], bound: float | None
    ) -> Iterator[Passage]:
        """The passages there already, with their scores; those too near are no negatives."""
        scores = {one.document.id: one.score for one in found}
        for passage in example.passages:
            score = scores.get(passage.document.id)
            if score is not None and bound is not None and score > bound and passage.label == 0:
                passage = replace(passage, label=None)
            yield passage.scored(self.by, score)


def with_sources(example: Example) -> Example:
    """The example with every source among its passages: those that were not stand first, label 1.

    A source that a stage has labelled otherwise stays as it is.
    """
    there = {passage.document.id for passage in example.passages}
    own = {span.document.id: span.document for span in example.sources}
    missing = (Passage(own[name], SOURCE, 1) for name in own if name not in there)
    return replace(example, passages=(*missing, *example.passages))


def negatives(example: Example) -> list[Passage]:
    """The passages that do not answer the query."""
    return [passage for passage in example.passages if passage.label == 0]


def kept(example: Example, stage: Stage, least: int, note: str = "") -> Example:
    """With a verdict that passes an example of at least so many negatives; the value is theirs."""
    count = len(negatives(example))
    return example.judged(stage, count >= least, count, least, note)


def texts_of(example: Example) -> set[str]:
    """The normal forms of the sources, of what was shown of them, and of all other passages."""
    shown = {normalised(span.text) for span in example.sources}
    documents = [span.document for span in example.sources]
    return shown | _texts_of([*documents, *(p.document for p in example.passages)])


def _fresh(example: Example, found: Sequence[Candidate]) -> Iterator[Candidate]:
    """What is found and not beside the query yet, by id or text, each once."""
    ids = {passage.document.id for passage in example.passages}
    texts = texts_of(example)
    for one in found:
        own = _texts(one.document)
        if one.document.id not in ids and not texts & own:
            yield one
        ids.add(one.document.id)
        texts |= own


def _texts_of(documents: Sequence[Document]) -> set[str]:
    return set().union(*map(_texts, documents))


def _texts(document: Document) -> set[str]:
    """With and without the title; no text is like another."""
    return set(map(normalised, {document.contents, document.text})) - {""}
