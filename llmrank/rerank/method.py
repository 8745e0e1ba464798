"""Methods with their parameters set: alone, inside one another, in a row; reading their names."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import llmrank.spec as spec
from llmrank.errors import SpecError
from llmrank.plan import Answer, Ask, Drive, Need, Plan, drive, need, persistent, staged
from llmrank.rerank.passages import split
from llmrank.rerank.registry import METHODS, Family, Reranking
from llmrank.types import Candidate, Document, Ordering, Query, Status

DEPTH = 100
_FUNCTIONS: Mapping[str, Any] = {
    f.__name__: f for f in (math.ceil, math.floor, math.log2, min, max, sum, len, int, map)
}
"""What formulas of calls may use."""

_TRIED = (24, 2)
"""How many candidates needs are looked for with: fewer where a design cannot have so many."""


@dataclass(frozen=True, slots=True)
class Method:
    """A method with its parameters and depth: how many candidates it looks at, the rest follow.

    `inner` is the method that a combinator such as `psc` ranks by; its depth is not used.
    """

    name: str
    parameters: Mapping[str, object] = field(default_factory=dict)
    depth: int = DEPTH
    inner: Method | None = None

    def __post_init__(self) -> None:
        family = _family(self.name)
        if family.inner != (self.inner is not None):
            takes = f"{self.name}(likelihood, ...)" if family.inner else f"{self.name}(...)"
            which = "ranks by another method" if family.inner else "takes no other method"
            raise SpecError(f"{self.name} {which}; write {takes}")
        if self.inner is not None and self.inner.depth != DEPTH:
            raise SpecError(f"the depth of {self.name} belongs behind its closing bracket")
        # Every parameter is filled in, so that methods are equal when their names are.
        bound = spec.bind(self.name, family.plan, self.parameters)
        object.__setattr__(self, "parameters", {**spec.defaults(family.plan), **bound})
        if self.depth < 1:
            raise SpecError("the depth must be at least 1")
        # A plan for no candidates asks nothing, but checks its parameters.
        next(self.rerank(Query("", ""), ()), None)

    def __str__(self) -> str:
        return f"{self._written}@{self.depth}"

    @property
    def _written(self) -> str:
        inner = self.inner._written if self.inner is not None else ""
        return spec.written(self.name, self.parameters, inner)

    @property
    def family(self) -> Family:
        """The method without its parameters."""
        return METHODS[self.name]

    @property
    def needs(self) -> tuple[Need, ...]:
        """What the method asks for, found by trying its plan on a few candidates."""
        for count in _TRIED:
            try:
                return _needs(self, count)
            except SpecError as error:
                problem = error
        raise problem

    def attempt(self, query: Query, candidates: Sequence[Candidate]) -> None:
        """Raise `SpecError` unless the method can begin to rank these candidates; asks nothing."""
        with _naming(query):
            Drive(self.rerank(query, candidates[: self.depth])).start()

    def most_calls(self, candidates: Sequence[Candidate]) -> tuple[int, bool]:
        """The most asks for these candidates where every answer is usable; whether it is exact."""
        head = candidates[: self.depth]
        if len(head) < 2:
            return len(Drive(self.rerank(Query("", ""), head)).start()), True
        return self._most(head)

    def _most(self, head: Sequence[Candidate]) -> tuple[int, bool]:
        exact, inner_calls = not self.family.calls.startswith("<="), 0
        if self.inner is not None:
            inner_calls, inner_exact = self.inner._most(self._parts(head))
            exact = exact and inner_exact
        names = {
            **self.parameters,
            **_FUNCTIONS,
            "n": len(head),
            "inner_calls": lambda n: inner_calls,
        }
        # The formulas are those of the registry, never a user's.
        found = eval(self.family.calls.removeprefix("<= "), {"__builtins__": {}}, names)
        return math.floor(found), exact

    def _parts(self, head: Sequence[Candidate]) -> Sequence[Candidate]:
        """What the inner method ranks."""
        if self.name != "passages":
            return head
        words, overlap = (cast("int", self.parameters[key]) for key in ("words", "overlap"))
        return [Candidate(part) for c in head for part in split(c.document, words, overlap)]

    @property
    def words(self) -> int:
        """How many words the passages have that the method cuts documents into; 0 if none."""
        within = self.inner.words if self.inner is not None else 0
        return within or (cast("int", self.parameters["words"]) if self.name == "passages" else 0)

    @property
    def rerank(self) -> Reranking:
        """The plan with all parameters but query and candidates set; it minds no depth."""
        if self.inner is not None:
            return partial(self.family.plan, rerank=self.inner.rerank, **self.parameters)
        return partial(self.family.plan, **self.parameters)

    def plan(self, query: Query, candidates: Sequence[Candidate]) -> Plan[Ordering]:
        """Rerank the first `depth` candidates.

        Replies in words that cannot be used are asked for once more.
        """
        head = candidates[: self.depth]
        with _naming(query):
            ordering = yield from persistent(self.rerank(query, head))
        rest = range(len(head), len(candidates))
        unjudged = (None,) * len(rest)
        return Ordering(
            (*ordering.order, *rest),
            (*ordering.scores, *unjudged),
            (*ordering.evidence, *unjudged) if ordering.evidence else (),
            ordering.settled if rest else ordering.ranked,
        )


@dataclass(frozen=True, slots=True)
class Cascade:
    """Methods in a row, each of which reranks what the one before it put first.

    A candidate's score and its evidence are those of the last stage that gave it one.
    """

    stages: tuple[Method, ...]

    def __str__(self) -> str:
        return " >> ".join(map(str, self.stages))

    @property
    def depth(self) -> int:
        """How many candidates are looked at."""
        return max(stage.depth for stage in self.stages)

    @property
    def needs(self) -> tuple[Need, ...]:
        """What the stages ask for."""
        return _merged(found for stage in self.stages for found in stage.needs)

    def attempt(self, query: Query, candidates: Sequence[Candidate]) -> None:
        """Raise `SpecError` unless every stage could begin to rank the first of these candidates.

        The stages after the first will meet others, which matters only where lengths do.
        """
        for stage in self.stages:
            stage.attempt(query, candidates)

    def most_calls(self, candidates: Sequence[Candidate]) -> tuple[int, bool]:
        """The most asks for these candidates where every answer is usable; whether it is exact."""
        stages = [stage.most_calls(candidates) for stage in self.stages]
        return sum(calls for calls, _ in stages), all(exact for _, exact in stages)

    def plan(self, query: Query, candidates: Sequence[Candidate]) -> Plan[Ordering]:
        """Run the stages one after another."""
        order = tuple(range(len(candidates)))
        scores: list[float | None] = [None] * len(candidates)
        evidence: list[str | None] = [None] * len(candidates)
        ranked = 0
        for stage in self.stages:
            plan = stage.plan(query, [candidates[i] for i in order])
            ordering = yield from staged(plan, str(stage))
            for place, score in enumerate(ordering.scores):
                if score is not None:
                    scores[order[place]] = score
            for place, passage in enumerate(ordering.evidence):
                if passage is not None:
                    evidence[order[place]] = passage
            order = tuple(order[place] for place in ordering.order)
            ranked = max(ranked, ordering.settled)
        return Ordering(order, tuple(scores), tuple(evidence) if any(evidence) else (), ranked)


Ranker = Method | Cascade


@contextmanager
def _naming(query: Query) -> Iterator[None]:
    """Say at which query a method cannot run."""
    try:
        yield
    except SpecError as error:
        raise SpecError(f"query {query.id!r}: {error}" if query.id else str(error)) from error


def _needs(method: Method, count: int) -> tuple[Need, ...]:
    found: list[Need] = []

    def judge(item: Ask[Any]) -> Answer[Any]:
        found.append(need(item)._replace(words=method.words))
        return Answer(status=Status.FAILED)

    tried = [Candidate(Document(str(i), "")) for i in range(min(count, method.depth))]
    drive(method.plan(Query("", ""), tried), judge)
    return _merged(found)


def _merged(needs: Iterable[Need]) -> tuple[Need, ...]:
    """Needs that differ in numbers alone as one with the largest of each."""
    found: dict[Need, Need] = {}
    for one in needs:
        kind = one._replace(n=1, words=0)
        same = found.get(kind, one)
        found[kind] = one._replace(n=max(one.n, same.n), words=max(one.words, same.words))
    return tuple(found.values())


def _family(name: str) -> Family:
    if name not in METHODS:
        raise SpecError(f"no method named {name!r}; there are: {', '.join(METHODS)}")
    return METHODS[name]


def parse(text: str) -> Ranker:
    """Read a method such as `sliding(window=20, stride=10)@100`, or several with `>>` between.

    The depth is 100 by default. A combinator names the method inside first:
    `psc(sliding(window=20), samples=5)@20`.
    """
    stages = tuple(_method(part) for part in spec.parts(text, ">>"))
    return stages[0] if len(stages) == 1 else Cascade(stages)


def _method(text: str) -> Method:
    if ">>" in text:
        raise SpecError(f"methods in a row (>>) cannot stand in brackets: {text.strip()!r}")
    name, given, depth, inner = spec.split(text)
    if inner and spec.split(inner).depth is not None:
        raise SpecError(f"{inner!r}: the depth of {name} belongs behind its closing bracket")
    within = _method(inner) if inner else None
    return Method(name, given, DEPTH if depth is None else depth, within)
