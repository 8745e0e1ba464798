"""Worlds small enough to know what they find, and judges that answer what stages ask."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from llmrank.plan import Answer, Ask, Embed, Grade, Grades, Plan, Vectors, Write, Written, drive
from llmrank.synth import Example, HeldOut, Span, Stage
from llmrank.types import Candidate, Document, Status

Answers = Callable[[Ask[Any]], Answer[Any]]


class Toy:
    """Documents found by how many different words they share with a text, at least one."""

    def __init__(
        self,
        texts: Mapping[str, str],
        *,
        vectors: Vectors | None = None,
        held_out: HeldOut | None = None,
        languages: Callable[[str], Mapping[str, float]] = lambda _: {"en": 1.0},
    ) -> None:
        self.documents = [Document(name, text) for name, text in texts.items()]
        self.held_out, self.language = held_out, languages
        self._vectors = vectors

    def search(self, text: str, k: int, by: str) -> Plan[list[Candidate]]:
        yield from ()
        asked = set(text.split())
        found = [
            Candidate(document, float(len(asked & set(document.text.split()))))
            for document in self.documents
        ]
        return sorted((c for c in found if c.score), key=lambda c: -c.score)[:k]

    def vectors(self) -> tuple[Sequence[str], Vectors]:
        assert self._vectors is not None
        return [document.id for document in self.documents], self._vectors


def example(query: str, *sources: Document, id: str = "") -> Example:
    """A query written for whole documents."""
    spans = tuple(Span(one, 0, len(one.contents)) for one in sources)
    return Example(id or f"{sources[0].id}#0", query, "search", spans)


def passed(
    stage: Stage,
    examples: Iterable[Example],
    world: Toy,
    judge: Answers = lambda _: failed(),
) -> list[Example]:
    """Examples after a stage, as whoever runs a recipe has them pass it."""
    memory = drive(stage.begin(world), judge)
    return [
        stage.settle(one, drive(stage.plan(one, world), judge), memory) if one.kept else one
        for one in examples
    ]


def failed() -> Answer[Any]:
    """No reply."""
    return Answer(status=Status.FAILED, problem="nobody is there")


def says(text: str, status: Status = Status.OK) -> Answer[Written]:
    """A text."""
    return Answer(status=status, value=Written(text))


def grades(yes: float) -> Answer[Grades]:
    """Yes with a probability."""
    return Answer(status=Status.OK, value=Grades((yes, 1 - yes), 1.0))


def writes(text: Callable[[Write], Answer[Written]]) -> Callable[[Ask[Any]], Answer[Any]]:
    """A judge that writes."""

    def judge(item: Ask[Any]) -> Answer[Any]:
        assert isinstance(item, Write)
        return text(item)

    return judge


def graded(yes: Callable[[Grade], float]) -> Callable[[Ask[Any]], Answer[Any]]:
    """A judge that grades."""

    def judge(item: Ask[Any]) -> Answer[Any]:
        assert isinstance(item, Grade)
        return grades(yes(item))

    return judge


def embeds(vectors: Mapping[str, Sequence[float]]) -> Callable[[Ask[Any]], Answer[Any]]:
    """A judge that embeds the texts it knows."""

    def judge(item: Ask[Any]) -> Answer[Any]:
        assert isinstance(item, Embed)
        if any(text not in vectors for text in item.texts):
            return failed()
        rows = np.array([vectors[text] for text in item.texts], dtype=np.float32)
        return Answer(status=Status.OK, value=rows)

    return judge
