"""Choosing the documents that queries are written for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

from llmrank.errors import SpecError
from llmrank.plan import Answer, Grade, Grades, Need, Plan, ask
from llmrank.synth.base import DocumentFilter, Step, World
from llmrank.synth.near import Distinct as NearDuplicates
from llmrank.synth.select import clusters, draw
from llmrank.types import Document, Query


class Choice(Step):
    """The step that a recipe begins with: which documents of the corpus are written for."""

    def choose(self, documents: Iterable[Document], world: World) -> Iterator[Document]:
        """Documents in the order of the corpus; those without a text are never chosen."""
        raise NotImplementedError


@dataclass(frozen=True)
class All(Choice):
    """Every document with at least so many characters."""

    name: ClassVar[str] = "all"

    _: KW_ONLY
    characters: int = 1

    def choose(self, documents: Iterable[Document], world: World) -> Iterator[Document]:
        """One after another, none of them kept."""
        return (one for one in documents if len(one.contents.strip()) >= max(1, self.characters))


@dataclass(frozen=True)
class Sample(Choice):
    """`count` documents, every one equally likely (reservoir sampling, Vitter 1985)."""

    name: ClassVar[str] = "random"
    counted: ClassVar[bool] = True

    _: KW_ONLY
    count: int = 100
    characters: int = 1
    seed: int = 0

    def check(self) -> None:
        """Raise `SpecError` for no documents."""
        _check_count(self, self.count)

    def choose(self, documents: Iterable[Document], world: World) -> Iterator[Document]:
        """In one pass; memory holds the sample alone."""
        long = All(characters=self.characters).choose(documents, world)
        yield from draw(long, self.count, self.seed)


@dataclass(frozen=True)
class Clusters(Choice):
    """`count` documents from all over the corpus: quotas for clusters of the dense index.

    k-means over the vectors (`k` clusters, 0: the square root of count), quotas by size with at
    least one for each cluster, in a cluster by softmax of the cosine to its centre over
    `temperature`, and with `diversity` by maximal marginal relevance. DUQGen, arXiv 2404.02489.
    """

    name: ClassVar[str] = "clusters"
    paper: ClassVar[str] = "DUQGen, arXiv 2404.02489"
    counted: ClassVar[bool] = True

    _: KW_ONLY
    count: int = 100
    k: int = 0
    temperature: float = 1.0
    diversity: float = 0.0
    characters: int = 1
    seed: int = 0

    def check(self) -> None:
        """Raise `SpecError` for no documents or no clusters."""
        _check_count(self, self.count)
        if self.k < 0 or not self.temperature > 0 or not 0 <= self.diversity <= 1:
            raise SpecError("clusters: k is 0 or more, temperature above 0, diversity 0 to 1")

    @property
    def searches(self) -> frozenset[str]:
        """The index with the vectors."""
        return frozenset({"dense"})

    def choose(self, documents: Iterable[Document], world: World) -> Iterator[Document]:
        """A choice by the vectors, then one pass over the corpus."""
        ids, vectors = world.vectors()
        k = self.k or max(1, round(self.count**0.5))
        chosen = clusters(
            vectors,
            self.count,
            k=k,
            temperature=self.temperature,
            diversity=self.diversity,
            seed=self.seed,
        )
        wanted = {ids[place] for place in chosen}
        long = All(characters=self.characters).choose(documents, world)
        return (document for document in long if document.id in wanted)


@dataclass(frozen=True)
class Distinct(DocumentFilter):
    """Of documents that are nearly the same the first is kept: Jaccard similarity by MinHash."""

    name: ClassVar[str] = "distinct"
    paper: ClassVar[str] = "MinHash, Broder 1997"

    _: KW_ONLY
    least: float = 0.8

    def check(self) -> None:
        """Raise `SpecError` for a similarity that is none."""
        if not 0 < self.least <= 1:
            raise SpecError("distinct: least is above 0 and at most 1")

    def begin(self, world: World) -> Plan[NearDuplicates]:
        """The documents so far."""
        yield from ()
        return NearDuplicates(self.least)

    def keeps(self, document: Document, found: Any, memory: Any) -> bool:  # noqa: ANN401
        """Unless one before it is nearly the same."""
        return memory.seen(document.id, document.contents) is None


@dataclass(frozen=True)
class Worthwhile(DocumentFilter):
    """A model must say that a document has something in it that could be searched for."""

    name: ClassVar[str] = "worthwhile"

    _: KW_ONLY
    least: float = 0.5

    def check(self) -> None:
        """Raise `SpecError` for a probability that is none."""
        if not 0 <= self.least <= 1:
            raise SpecError("worthwhile: least is between 0 and 1")

    @property
    def needs(self) -> list[Need]:
        """One judgement of the document alone."""
        return [Need(Grade, task="worthwhile", labels=("yes", "no"))]

    def plan(self, document: Document, world: World) -> Plan[Answer[Grades]]:
        """The probabilities of yes and no."""
        return (yield from ask(Grade(Query(document.id, ""), document, task="worthwhile")))

    def keeps(self, document: Document, found: Any, memory: Any) -> bool:  # noqa: ANN401
        """Without an answer it is left out."""
        return found.value is not None and found.value.probabilities[0] >= self.least


def _check_count(step: Choice, count: int) -> None:
    if count < 1:
        raise SpecError(f"{step.name}: @ must be followed by at least 1")
