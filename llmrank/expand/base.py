"""What an augmentation is given, and what it makes of a query."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from llmrank.errors import SpecError
from llmrank.plan import Answer, Embed, Plan, Vectors, Write, Written, ask_all
from llmrank.types import Document, Query

Kind = Literal["bm25", "dense"]
Scored = tuple[str, float]


class NeedsIndex(SpecError):
    """An augmentation takes feedback from an index, and there is none."""

    def __init__(self) -> None:
        super().__init__("this augmentation needs documents to search: give a corpus (--corpus)")


@dataclass(frozen=True, slots=True)
class View:
    """One search.

    BM25 searches with `terms`, analysed and weighted, and with the terms of `texts`, each of which
    counts as often as is said; dense retrieval with `vector`, of shape (1, dimensions).
    """

    texts: tuple[tuple[str, float], ...] = ()
    terms: Mapping[str, float] = field(default_factory=dict)
    vector: Vectors | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Expansion:
    """What an augmentation made of a query.

    The rankings of the `views` are fused by the sum of 1 / (`constant` + rank), or `ranking`
    is the result already. `texts` are the usable generated texts, and `answers` the outcome of
    every sample. `expanded` is False where the plain query has to serve; `note` says why, or what
    a gate decided by.
    """

    query: Query
    views: tuple[View, ...]
    texts: tuple[str, ...] = ()
    answers: tuple[Answer[Written], ...] = field(default=(), repr=False)
    expanded: bool = True
    constant: float = 60.0
    ranking: tuple[Scored, ...] | None = None
    note: str = ""


class FirstStage(Protocol):
    """The index that an augmentation is for, and what feedback takes from it.

    `kinds` says by what it searches, `depth` how many documents are wanted in the end, and `size`
    how many there are. Everything is in memory or mapped: nothing here waits.
    """

    @property
    def kinds(self) -> frozenset[Kind]:
        """What it searches by."""
        ...

    @property
    def depth(self) -> int:
        """How many documents a search has to give."""
        ...

    @property
    def size(self) -> int:
        """Number of documents."""
        ...

    def search(self, expansion: Expansion, k: int) -> list[Scored]:
        """Ids and scores of the k best documents, score falling, then id falling."""
        ...

    def analyze(self, text: str) -> list[str]:
        """The terms of a text as BM25 counts them."""
        ...

    def frequency(self, term: str) -> int:
        """In how many documents an analysed term is."""
        ...

    def score(self, view: View, ids: Sequence[str]) -> list[float]:
        """The scores of documents as one search gives them, in their order.

        0 for a document that BM25 does not find, as it has no term of the view.
        """
        ...

    def counts(self, document_id: str) -> Mapping[str, int]:
        """How often every analysed term is in a document."""
        ...

    def vectors(self, ids: Sequence[str]) -> Vectors:
        """The vectors of documents, shape (len(ids), dimensions)."""
        ...

    def document(self, document_id: str) -> Document:
        """A document with its text; `InputError` where the index knows no texts."""
        ...


def write(
    query: Query,
    task: str,
    n: int,
    *,
    also: tuple[tuple[str, str | tuple[tuple[str, ...], ...]], ...] = (),
) -> Plan[list[Answer[Written]]]:
    """n samples of a text written for a query, in one round; `also` are inputs beside the query."""
    check_counts(n=n)
    inputs = (("query", query.text), *also)
    return (yield from ask_all([Write(task, inputs, sample=i) for i in range(n)]))


def usable(answers: Sequence[Answer[Written]]) -> tuple[str, ...]:
    """The texts of the answers that have one."""
    return tuple(answer.value.text for answer in answers if answer.value is not None)


def vectors(texts: Sequence[str], role: str) -> Plan[Vectors | None]:
    """The vectors of texts, shape (len(texts), dimensions); None where the model gives none."""
    (answer,) = yield from ask_all([Embed(tuple(texts), role=role)])
    return answer.value


def plain(
    query: Query,
    first: FirstStage,
    answers: Sequence[Answer[Written]] = (),
    note: str = "no usable text",
) -> Plan[Expansion]:
    """The query as it is, searched by all that the first stage searches by, and why.

    A query that cannot be embedded has no dense view; without any view nothing is found for it.
    """
    views = [View(((query.text, 1.0),))] if "bm25" in first.kinds else []
    if "dense" in first.kinds:
        own = yield from vectors([query.text], "query")
        if own is not None:
            views.append(View(vector=own))
        else:
            note = "the query could not be embedded"
    return Expansion(query, tuple(views), (), tuple(answers), expanded=False, note=note)


def check_counts(**counts: int) -> None:
    """`SpecError` unless each is 1 or more."""
    for name, count in counts.items():
        if count < 1:
            raise SpecError(f"{name} must be at least 1")


def check_shares(**shares: float) -> None:
    """`SpecError` unless each is between 0 and 1."""
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise SpecError(f"{name} must be between 0 and 1")


def check_weights(**weights: float) -> None:
    """`SpecError` unless each is 0 or more, and finite."""
    for name, weight in weights.items():
        if not 0 <= weight < math.inf:
            raise SpecError(f"{name} must be 0 or more")
