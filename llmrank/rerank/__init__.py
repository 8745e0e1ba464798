"""Reranking methods as plans, and the names they are called by.

A method is a generator function plus one line in `METHODS`; its keyword parameters are the
parameters of its name. A `Method` is a value whose `str` can be parsed again:
`sliding(window=20, stride=10)@100`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import llmrank.spec as spec
from llmrank.errors import SpecError
from llmrank.plan import Ask, Grade, Likelihood, Order, Pick, Plan, persistent
from llmrank.rerank.listwise import sliding
from llmrank.rerank.pointwise import likelihood, yesno
from llmrank.types import Candidate, Ordering, Query

Reranking = Callable[..., Plan[Ordering]]


@dataclass(frozen=True, slots=True)
class Family:
    """A method before its parameters are set: what it asks, and where it comes from.

    `calls` and `rounds` (calls that have to wait for one another) are formulas for n >= 2
    candidates.
    """

    plan: Reranking
    asks: type[Ask[Any]]
    calls: str
    rounds: str
    source: str


_WINDOWS = "1 + max(0, ceil((n - window) / stride))"

METHODS: Mapping[str, Family] = {
    "likelihood": Family(likelihood, Likelihood, "n", "1", "UPR, arXiv 2204.07496"),
    "yesno": Family(yesno, Grade, "n", "1", "Liang et al. 2022 (HELM), arXiv 2211.09110"),
    "sliding": Family(sliding, Order, _WINDOWS, _WINDOWS, "RankGPT, arXiv 2304.09542"),
}


@dataclass(frozen=True, slots=True)
class Method:
    """A method with its parameters and depth: how many candidates it looks at, the rest follow."""

    name: str
    parameters: Mapping[str, object] = field(default_factory=dict)
    depth: int = 100

    def __post_init__(self) -> None:
        plan = _family(self.name).plan
        # Every parameter is filled in, so that methods are equal when their names are.
        full = {**spec.defaults(plan), **spec.bind(self.name, plan, self.parameters)}
        object.__setattr__(self, "parameters", full)
        if self.depth < 1:
            raise SpecError("the depth must be at least 1")
        # A plan for no candidates asks nothing, but checks its parameters.
        next(plan(Query("", ""), (), **full), None)

    def __str__(self) -> str:
        return f"{spec.written(self.name, self.parameters)}@{self.depth}"

    @property
    def family(self) -> Family:
        """The method without its parameters."""
        return METHODS[self.name]

    def plan(self, query: Query, candidates: Sequence[Candidate]) -> Plan[Ordering]:
        """Rerank the first `depth` candidates.

        Replies in words that cannot be used are asked for once more; a probability would come out
        the same again.
        """
        head = candidates[: self.depth]
        inner = self.family.plan(query, head, **self.parameters)
        ordering = yield from persistent(inner) if self.family.asks in (Order, Pick) else inner
        rest = range(len(head), len(candidates))
        return Ordering((*ordering.order, *rest), (*ordering.scores, *(None for _ in rest)))


def _family(name: str) -> Family:
    if name not in METHODS:
        raise SpecError(f"no method named {name!r}; there are: {', '.join(METHODS)}")
    return METHODS[name]


def parse(text: str) -> Method:
    """Read a method such as `sliding(window=20, stride=10)@100`; the depth is 100 by default."""
    name, given, depth = spec.split(text)
    return Method(name, given, 100 if depth is None else depth)
