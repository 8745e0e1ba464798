"""Methods with their parameters set: alone, inside one another, in a row; reading their names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import llmrank.spec as spec
from llmrank.errors import SpecError
from llmrank.plan import Answer, Ask, Need, Plan, drive, need, persistent, staged
from llmrank.rerank.registry import METHODS, Family, Reranking
from llmrank.types import Candidate, Document, Ordering, Query, Status

DEPTH = 100
_TRIED = 24


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
        return _needs(self)

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
        ordering = yield from persistent(self.rerank(query, head))
        rest = range(len(head), len(candidates))
        unjudged = (None,) * len(rest)
        return Ordering(
            (*ordering.order, *rest),
            (*ordering.scores, *unjudged),
            (*ordering.evidence, *unjudged) if ordering.evidence else (),
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
        return _needs(self)

    def plan(self, query: Query, candidates: Sequence[Candidate]) -> Plan[Ordering]:
        """Run the stages one after another."""
        order = tuple(range(len(candidates)))
        scores: list[float | None] = [None] * len(candidates)
        evidence: list[str | None] = [None] * len(candidates)
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
        return Ordering(order, tuple(scores), tuple(evidence) if any(evidence) else ())


Ranker = Method | Cascade


def _needs(ranker: Ranker) -> tuple[Need, ...]:
    found: dict[Need, None] = {}

    def judge(item: Ask[Any]) -> Answer[Any]:
        found[need(item)] = None
        return Answer(status=Status.FAILED)

    tried = [Candidate(Document(str(i), "")) for i in range(min(_TRIED, ranker.depth))]
    drive(ranker.plan(Query("", ""), tried), judge)
    return tuple(found)


def _family(name: str) -> Family:
    if name not in METHODS:
        raise SpecError(f"no method named {name!r}; there are: {', '.join(METHODS)}")
    return METHODS[name]


def parse(text: str) -> Ranker:
    """Read a method such as `sliding(window=20, stride=10)@100`, or several with `>>` between.

    The depth is 100 by default. A combinator names the method inside first:
    `psc(sliding(window=20), samples=5)@20`.
    """
    stages = tuple(_method(part) for part in text.split(">>"))
    return stages[0] if len(stages) == 1 else Cascade(stages)


def _method(text: str) -> Method:
    name, given, depth, inner = spec.split(text)
    within = _method(inner) if inner else None
    return Method(name, given, DEPTH if depth is None else depth, within)
