"""Writing queries for documents from a few examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from llmrank.errors import SpecError
from llmrank.plan import Answer, Plan, Write, Written, ask_all
from llmrank.types import Document

TASK = "query_generation"


class Demonstration(NamedTuple):
    """A document and a query that it answers, shown to the model as an example."""

    document: str
    query: str


@dataclass(frozen=True, slots=True)
class Draft:
    """One attempt at a query for a document; `query` is empty when the model gave none."""

    document: Document
    ask: Write
    answer: Answer[Written]

    @property
    def sample(self) -> int:
        """Which of the document's attempts this is, from 0."""
        return self.ask.sample

    @property
    def query(self) -> str:
        """The query as the model wrote it."""
        return self.answer.value.text if self.answer.value is not None else ""


def write_queries(
    document: Document, examples: Sequence[Demonstration] = (), *, n: int = 1, words: int = 256
) -> Plan[list[Draft]]:
    """n queries that the document answers; the document is shown up to `words` words.

    Dai et al. 2022 (Promptagator), arXiv 2209.11755; Bonifacio et al. 2022 (InPars),
    arXiv 2202.05144. A document without text gets no query and costs no call.
    """
    if n < 1:
        raise SpecError("n must be at least 1")
    shown = " ".join(document.contents.split()[:words])
    if not shown:
        return []
    inputs = (("document", shown), ("examples", tuple(tuple(pair) for pair in examples)))
    asks = [Write(TASK, inputs, sample=i) for i in range(n)]
    answers = yield from ask_all(asks)
    return [Draft(document, ask, answer) for ask, answer in zip(asks, answers, strict=True)]
