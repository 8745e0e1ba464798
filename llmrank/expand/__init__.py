"""Query augmentation as plans: what a first stage then searches with, or finds with feedback.

What a model writes is untrusted: an empty, refused or failed text is left out and counted, and a
query without any usable text is searched as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NoReturn

import llmrank.spec as spec
from llmrank.errors import SpecError
from llmrank.expand.base import Expansion, FirstStage, Kind, NeedsIndex, Scored, View, plain
from llmrank.expand.feedback import rerank_feedback, rm3, rocchio, vector_prf, vector_rocchio
from llmrank.expand.gate import gate_grades, gated
from llmrank.expand.generative import (
    grf,
    grf_prompts,
    hyde,
    hyde_prompts,
    keyword_prompts,
    keywords,
    query2doc,
)
from llmrank.expand.views import clarify, mixgr, multi_query, subqueries, translate
from llmrank.plan import Embed, Grade, Need, Plan, Vectors, Write, need
from llmrank.types import Document, Query

__all__ = [
    "METHODS",
    "Expander",
    "Expansion",
    "Family",
    "FirstStage",
    "Kind",
    "NeedsIndex",
    "NoIndex",
    "Scored",
    "View",
    "parse",
    "plain",
]


@dataclass(frozen=True, slots=True)
class Family:
    """An augmentation before its parameters are set.

    `kinds` are the first stages that it is for, its own first, and `tasks` the texts that it has
    written, which may depend on the parameters, as may how many documents at most it has graded for
    a query and whether it `reads` the texts of documents itself. An `inner` augmentation is for
    what the one inside it is for.
    """

    plan: Callable[..., Plan[Expansion]]
    kinds: tuple[Kind, ...]
    source: str
    tasks: Callable[[Mapping[str, Any]], Sequence[str]] = lambda _: ()
    graded: Callable[[Mapping[str, Any]], int] = lambda _: 0
    reads: Callable[[Mapping[str, Any]], bool] = lambda _: False
    inner: bool = False


def _always(*tasks: str) -> Callable[[Mapping[str, Any]], Sequence[str]]:
    return lambda _: tasks


METHODS: Mapping[str, Family] = {
    "query2doc": Family(
        query2doc, ("bm25", "dense"), "query2doc, arXiv 2303.07678", _always("query2doc")
    ),
    "hyde": Family(hyde, ("dense",), "HyDE, arXiv 2212.10496", hyde_prompts),
    "grf": Family(grf, ("bm25",), "GRF, arXiv 2304.13157, 2305.07477", grf_prompts),
    "keywords": Family(keywords, ("bm25",), "Q2E, arXiv 2305.03653", keyword_prompts),
    "multi_query": Family(
        multi_query, ("bm25", "dense"), "RAG-Fusion, arXiv 2402.03367", _always("multi_query")
    ),
    "subqueries": Family(
        subqueries, ("bm25", "dense"), "least-to-most, arXiv 2205.10625", _always("subqueries")
    ),
    "mixgr": Family(
        mixgr,
        ("dense", "bm25"),
        "MixGR, arXiv 2407.10691",
        _always("subqueries"),
        reads=lambda given: bool(given["propositions"]),
    ),
    "clarify": Family(
        clarify,
        ("bm25", "dense"),
        "simulated clarification, arXiv 2205.15918",
        _always("clarify", "clarified"),
    ),
    "translate": Family(
        translate, ("bm25", "dense"), "query translation, Oard 1998", _always("translate")
    ),
    "rm3": Family(rm3, ("bm25",), "RM3, as in Anserini"),
    "rocchio": Family(rocchio, ("bm25",), "Rocchio, as in Anserini"),
    "vector_prf": Family(vector_prf, ("dense",), "vector PRF (average), arXiv 2108.11044"),
    "vector_rocchio": Family(vector_rocchio, ("dense",), "vector PRF (Rocchio), arXiv 2108.11044"),
    "rerank_feedback": Family(
        rerank_feedback,
        ("dense",),
        "ReFIT, arXiv 2305.11744; FIRST, arXiv 2406.15657",
        graded=lambda given: int(given["depth"]),
    ),
    "gated": Family(
        gated,
        ("bm25", "dense"),
        "overlap; grades; NQC, Shtok et al. 2012",
        graded=gate_grades,
        inner=True,
    ),
}


@dataclass(frozen=True, slots=True)
class Expander:
    """An augmentation with its parameters; its `str` can be parsed again.

    `inner` is the one that an augmentation such as `gated` decides about.
    """

    name: str
    parameters: Mapping[str, object] = field(default_factory=dict)
    inner: Expander | None = None

    def __post_init__(self) -> None:
        family = _family(self.name)
        if family.inner != (self.inner is not None):
            takes = f"{self.name}(query2doc, ...)" if family.inner else f"{self.name}(...)"
            which = "is about another expansion" if family.inner else "takes no other expansion"
            raise SpecError(f"{self.name} {which}; write {takes}")
        plan = family.plan
        full = {**spec.defaults(plan), **spec.bind(self.name, plan, self.parameters)}
        object.__setattr__(self, "parameters", full)
        # What is done before anything is asked checks the parameters.
        with suppress(NeedsIndex):
            next(self.plan(Query("", ""), NoIndex(frozenset(self.kinds[:1]))), None)

    def __str__(self) -> str:
        return spec.written(self.name, self.parameters, str(self.inner or ""))

    @property
    def family(self) -> Family:
        """The augmentation without its parameters."""
        return METHODS[self.name]

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The first stages that it is for, its own first."""
        return self.family.kinds if self.inner is None else self.inner.kinds

    def needs(self, kinds: frozenset[Kind]) -> list[Need]:
        """What it asks where the first stage searches by these."""
        asked = [] if self.inner is None else self.inner.needs(frozenset())
        asked += [Need(Write, task=task) for task in self.family.tasks(self.parameters)]
        if self.family.graded(self.parameters):
            asked.append(need(Grade(Query("", ""), Document("", ""))))
        if "dense" in kinds:
            asked.append(Need(Embed))
        return list(dict.fromkeys(asked))

    @property
    def takes_texts(self) -> bool:
        """Whether it needs the texts of documents."""
        inner = self.inner is not None and self.inner.takes_texts
        return inner or self.family.reads(self.parameters) or self.graded > 0

    @property
    def graded(self) -> int:
        """How many documents at most it has graded for a query."""
        inner = 0 if self.inner is None else self.inner.graded
        return inner + self.family.graded(self.parameters)

    def plan(self, query: Query, first: FirstStage) -> Plan[Expansion]:
        """Expand one query for a first stage."""
        inner = {} if self.inner is None else {"inner": self.inner.plan}
        return self.family.plan(query, first, **inner, **self.parameters)


class NoIndex:
    """The place of a first stage where nothing is searched: queries are only written.

    `kinds` is what they will be searched by.
    """

    size = depth = 0

    def __init__(self, kinds: frozenset[Kind]) -> None:
        self.kinds = kinds

    def search(self, expansion: Expansion, k: int) -> list[Scored]:
        """Raise."""
        self._none()

    def analyze(self, text: str) -> list[str]:
        """Raise."""
        self._none()

    def frequency(self, term: str) -> int:
        """Raise."""
        self._none()

    def score(self, view: View, ids: Sequence[str]) -> list[float]:
        """Raise."""
        self._none()

    def counts(self, document_id: str) -> Mapping[str, int]:
        """Raise."""
        self._none()

    def vectors(self, ids: Sequence[str]) -> Vectors:
        """Raise."""
        self._none()

    def document(self, document_id: str) -> Document:
        """Raise."""
        self._none()

    def _none(self) -> NoReturn:
        raise NeedsIndex


def _family(name: str) -> Family:
    if name not in METHODS:
        raise SpecError(f"no expansion named {name!r}; there are: {', '.join(METHODS)}")
    return METHODS[name]


def parse(text: str) -> Expander:
    """Read an expansion such as `query2doc(n=2)`, or `gated(query2doc(n=2), by=overlap)`."""
    name, given, depth, inner = spec.split(text)
    if depth is not None:
        raise SpecError(f"an expansion has no depth: {text!r}")
    return Expander(name, given, parse(inner) if inner else None)
