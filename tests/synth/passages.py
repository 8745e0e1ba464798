"""Examples, a first stage and reranking methods for tests of stages that label passages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from llmrank.plan import Answer, Ask, Grade, Grades, Likelihood, LogProb, Plan, Vectors, drive
from llmrank.synth.base import SOURCE, Example, HeldOut, Passage, Span, Stage
from llmrank.types import Candidate, Document, Status

FAILED: Answer[Any] = Answer(status=Status.FAILED, problem="no server")
TEXT = "yeast makes gas in the dough"


def document(name: str, text: str = "") -> Document:
    """A document with a text of its own."""
    return Document(name, text or f"text of {name}")


def example(*sources: str, passages: Sequence[Passage] = (), name: str = "s#0") -> Example:
    """A query for the documents with these names."""
    found = (document(one) for one in sources or ("s",))
    spans = tuple(Span(one, 0, len(one.contents)) for one in found)
    return Example(name, "why does dough rise", "question", spans, tuple(passages))


def mined(name: str, label: int | None = 0, **scores: float) -> Passage:
    """A passage that BM25 found."""
    return Passage(document(name), "bm25", label, scores)


def with_mined(*names: str, sources: Sequence[str] = ("s",)) -> Example:
    """An example with its sources and negatives that BM25 found."""
    own = [Passage(document(one), SOURCE, 1) for one in sources]
    return example(*sources, passages=[*own, *(mined(one) for one in names)])


@dataclass
class Index:
    """A first stage that finds what it was given, best first."""

    found: Sequence[Candidate] = ()
    asked: list[tuple[str, int, str]] = field(default_factory=list)
    held_out: HeldOut | None = None

    def search(self, text: str, k: int, by: str) -> Plan[list[Candidate]]:
        """The first k."""
        yield from ()
        self.asked.append((text, k, by))
        return list(self.found[:k])

    def vectors(self) -> tuple[Sequence[str], Vectors]:
        """None."""
        return (), np.zeros((0, 1), dtype=np.float32)

    def language(self, text: str) -> Mapping[str, float]:
        """English."""
        return {"en": 1.0}


def found(*names: str, top: float = 10.0) -> list[Candidate]:
    """Candidates in this order, each with a score 1 below that of the one before."""
    return [Candidate(document(name), top - i) for i, name in enumerate(names)]


class Judge:
    """Grades by document id with the probability of yes, and gives the same as log-likelihood.

    What has no probability is a failed call.
    """

    def __init__(self, likely: Mapping[str, float]) -> None:
        self.likely = likely
        self.asks: list[Ask[Any]] = []

    def __call__(self, item: Ask[Any]) -> Answer[Any]:
        self.asks.append(item)
        assert isinstance(item, Grade | Likelihood)
        value = self.likely.get(item.doc.id)
        if value is None:
            return FAILED
        if isinstance(item, Likelihood):
            return Answer(status=Status.OK, value=LogProb(value - 20.0, 4))
        rest = (1 - value) / (len(item.labels) - 1)
        return Answer(
            status=Status.OK, value=Grades((value, *[rest] * (len(item.labels) - 1)), 1.0)
        )

    @property
    def judged(self) -> list[str]:
        """The ids of the documents asked about."""
        return [item.doc.id for item in self.asks if isinstance(item, Grade | Likelihood)]


def run(stage: Stage, one: Example, judge: Any = None, world: Index | None = None) -> Example:  # noqa: ANN401
    """What a stage makes of an example."""
    judge = judge or (lambda _item: FAILED)
    return stage.settle(one, drive(stage.plan(one, world or Index()), judge), None)


def labels(one: Example) -> dict[str, int | None]:
    """The label of every passage, by document id."""
    return {passage.document.id: passage.label for passage in one.passages}


def scores(one: Example, name: str) -> dict[str, float]:
    """The scores of a name, by document id."""
    return {p.document.id: p.scores[name] for p in one.passages if name in p.scores}
