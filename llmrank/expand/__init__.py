"""Query augmentation as plans: a language model writes text that a first stage then searches with.

What a model writes is untrusted: an empty, refused or failed text is left out and counted, and a
query without any usable text is searched as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import llmrank.spec as spec
from llmrank.errors import BackendError, SpecError
from llmrank.plan import Answer, Embed, Plan, Vectors, Write, Written, ask_all
from llmrank.types import Query

FirstStage = Literal["bm25", "dense"]


@dataclass(frozen=True, slots=True)
class Expansion:
    """What an augmentation made of a query.

    `texts` are the usable generated texts. For BM25 search with the query text `repeat` times and
    each text once; for dense retrieval search with `vector`, of shape (1, dimensions). `answers`
    keeps the outcome of every sample. `expanded` is False where the plain query has to serve.
    """

    query: Query
    texts: tuple[str, ...]
    answers: tuple[Answer[Written], ...] = field(repr=False)
    repeat: int = 1
    vector: Vectors | None = field(default=None, compare=False, repr=False)

    @property
    def expanded(self) -> bool:
        """Whether there was any usable text."""
        return bool(self.texts)


def write(query: Query, task: str, n: int) -> Plan[list[Answer[Written]]]:
    """n samples of a text written for a query, in one round."""
    if n < 1:
        raise SpecError("n must be at least 1")
    inputs = (("query", query.text),)
    return (yield from ask_all([Write(task, inputs, sample=i) for i in range(n)]))


def query2doc(query: Query, *, n: int = 1, repeat: int = 5) -> Plan[Expansion]:
    """Pseudo documents appended to the query, which counts `repeat` times.

    Wang et al. 2023, arXiv 2303.07678: one text of at most 128 tokens, the query five times.
    """
    if repeat < 1:
        raise SpecError("repeat must be at least 1")
    answers = yield from write(query, "query2doc", n)
    return Expansion(query, _usable(answers), tuple(answers), repeat)


def hyde(query: Query, *, n: int = 4) -> Plan[Expansion]:
    """The mean of the vectors of the query and of n hypothetical documents, unnormalised.

    Gao et al. 2022, arXiv 2212.10496 (eight samples, temperature 0.7). Without a usable document
    the vector is the query's own.
    """
    answers = yield from write(query, "hyde", n)
    texts = _usable(answers)
    asks = [Embed((query.text,), role="query")]
    if texts:
        asks.append(Embed(texts, role="document"))
    embedded = yield from ask_all(asks)
    vectors = [answer.value for answer in embedded]
    own = vectors[0]
    if own is None:
        raise BackendError(f"query {query.id} could not be embedded: {embedded[0].problem}")
    if texts and vectors[1] is not None:
        total = own.sum(axis=0) + vectors[1].sum(axis=0)
        mean = (total / (1 + len(texts))).reshape(1, -1)
        return Expansion(query, texts, tuple(answers), vector=mean)
    return Expansion(query, (), tuple(answers), vector=own)


def _usable(answers: list[Answer[Written]]) -> tuple[str, ...]:
    return tuple(answer.value.text for answer in answers if answer.value is not None)


@dataclass(frozen=True, slots=True)
class Family:
    """An augmentation before its parameters are set, and the first stage it is made for."""

    plan: Callable[..., Plan[Expansion]]
    first_stage: FirstStage
    source: str


METHODS: Mapping[str, Family] = {
    "query2doc": Family(query2doc, "bm25", "query2doc, arXiv 2303.07678"),
    "hyde": Family(hyde, "dense", "HyDE, arXiv 2212.10496"),
}


@dataclass(frozen=True, slots=True)
class Expander:
    """An augmentation with its parameters; its `str` can be parsed again."""

    name: str
    parameters: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        plan = _family(self.name).plan
        full = {**spec.defaults(plan), **spec.bind(self.name, plan, self.parameters)}
        object.__setattr__(self, "parameters", full)
        # The first round checks the parameters; nothing is asked before it is answered.
        next(plan(Query("", ""), **full))

    def __str__(self) -> str:
        return spec.written(self.name, self.parameters)

    @property
    def family(self) -> Family:
        """The augmentation without its parameters."""
        return METHODS[self.name]

    def plan(self, query: Query) -> Plan[Expansion]:
        """Expand one query."""
        return self.family.plan(query, **self.parameters)


def _family(name: str) -> Family:
    if name not in METHODS:
        raise SpecError(f"no expansion named {name!r}; there are: {', '.join(METHODS)}")
    return METHODS[name]


def parse(text: str) -> Expander:
    """Read an expansion such as `query2doc(n=2)`."""
    name, given, depth, inner = spec.split(text)
    if depth is not None or inner:
        raise SpecError(f"an expansion has no depth and no method inside: {text!r}")
    return Expander(name, given)
