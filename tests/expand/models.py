"""Models and first stages for tests of augmentations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llmrank.api.first_stage import Indexed
from llmrank.api.retriever import Retriever
from llmrank.plan import Answer, Ask, Embed, Vectors, Write, Written
from llmrank.types import Document, Query, Status

QUERY = Query("q", "why does dough rise")
LOST = (Status.MALFORMED, Status.REFUSED, Status.FAILED, Status.UNASKED)


def lengths(texts: Sequence[str]) -> Vectors:
    """Two dimensions: the length of a text, and 1."""
    return np.array([[len(text), 1.0] for text in texts], dtype=np.float32)


def read(text: str | None, status: Status = Status.MALFORMED) -> Answer[Written]:
    """The answer that has a text, or none."""
    if text is None:
        return Answer(status=status, problem="nothing")
    return Answer(status=Status.OK, value=Written(text))


class Model:
    """Writes the given texts, one a sample; None is a reply without anything usable."""

    def __init__(self, *texts: str | None, status: Status = Status.MALFORMED) -> None:
        self.texts, self.status = texts, status
        self.asks: list[Ask[Any]] = []

    def __call__(self, item: Ask[Any]) -> Answer[Any]:
        self.asks.append(item)
        if isinstance(item, Embed):
            return Answer(status=Status.OK, value=lengths(item.texts))
        return read(self.texts[item.sample], self.status)


class Tasks:
    """Writes the text of each task, and embeds by a table; what is in neither is lost."""

    def __init__(
        self, written: Mapping[str, str], embedded: Mapping[str, Sequence[float]] | None = None
    ) -> None:
        self.written, self.embedded = written, embedded
        self.asks: list[Ask[Any]] = []

    def __call__(self, item: Ask[Any]) -> Answer[Any]:
        self.asks.append(item)
        if isinstance(item, Write):
            return read(self.written.get(item.task))
        assert isinstance(item, Embed)
        if self.embedded is None:
            return Answer(status=Status.FAILED, problem="no server")
        rows = [self.embedded[text] for text in item.texts]
        return Answer(status=Status.OK, value=np.array(rows, dtype=np.float32))

    @property
    def tasks(self) -> list[str]:
        """What was asked to be written."""
        return [item.task for item in self.asks if isinstance(item, Write)]


def lexical(texts: Mapping[str, str], depth: int = 10) -> Indexed:
    """A BM25 index of documents."""
    documents = [Document(name, text) for name, text in texts.items()]
    return Retriever(documents).indexed(depth)
