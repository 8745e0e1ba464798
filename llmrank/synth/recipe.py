"""Recipes: a choice of documents, writers, and the stages that every example passes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import llmrank.spec as spec
from llmrank.errors import SpecError
from llmrank.plan import Need
from llmrank.synth.across import Guard, Split, Unique
from llmrank.synth.base import DocumentFilter, Ranks, Stage, Step, Writer
from llmrank.synth.documents import All, Choice, Clusters, Distinct, Sample, Worthwhile
from llmrank.synth.filters import Copied, Judge, Language, Length, RoundTrip, SelfContained
from llmrank.synth.labels import Denoise, Relabel, Teacher
from llmrank.synth.negatives import Mine
from llmrank.synth.queries import WriteAcross, WriteQueries
from llmrank.synth.written import Harder, Levels, Unanswered

S = TypeVar("S", bound=Step)

STEPS: Mapping[str, type[Step]] = {
    step.name: step
    for step in (
        *(All, Sample, Clusters, Distinct, Worthwhile),
        *(WriteQueries, WriteAcross),
        *(Length, Copied, Language, SelfContained, Judge, RoundTrip, Unique, Guard),
        *(Mine, Denoise, Relabel, Teacher, Harder, Unanswered, Levels),
        Split,
    )
}


@dataclass(frozen=True, slots=True)
class Recipe:
    """A choice of documents, what leaves some out, what writes, and what the examples then pass.

    Its `str` can be parsed again.
    """

    choice: Choice
    filters: tuple[DocumentFilter, ...]
    writers: tuple[Writer, ...]
    stages: tuple[Stage, ...]

    def __str__(self) -> str:
        return " >> ".join(map(str, self.steps))

    @property
    def steps(self) -> tuple[Step, ...]:
        """All of them in their order."""
        return (self.choice, *self.filters, *self.writers, *self.stages)

    @property
    def needs(self) -> list[Need]:
        """What has to be asked of a model, searches left out."""
        return list(dict.fromkeys(need for step in self.steps for need in step.needs))

    @property
    def searches(self) -> frozenset[str]:
        """The indexes that are needed."""
        return frozenset().union(*(step.searches for step in self.steps))


def parse(text: str, method: Callable[[str], Ranks]) -> Recipe:
    """Read a recipe; `method` reads the reranking methods in it. `SpecError` says what is wrong."""
    steps = [_step(part, method) for part in spec.parts(text, ">>")]
    if not isinstance(steps[0], Choice):
        known = ", ".join(name for name, step in STEPS.items() if issubclass(step, Choice))
        raise SpecError(f"a recipe begins with a choice of documents ({known}), not {steps[0]}")
    rest: list[Step] = steps[1:]
    filters, writers = _leading(rest, DocumentFilter), _leading(rest, Writer)
    if not writers:
        raise SpecError("a recipe writes something after the choice of documents: >> write")
    stages = _leading(rest, Stage)
    if rest:
        raise SpecError(f"{rest[0]} stands too late; documents are chosen, then written for")
    names = [stage.name for stage in stages]
    if Split.name in names and Mine.name in names[names.index(Split.name) :]:
        raise SpecError("mine stands before split, or what it finds is of other splits")
    return Recipe(steps[0], tuple(filters), tuple(writers), tuple(stages))


def _leading(rest: list[Step], kind: type[S]) -> Sequence[S]:
    """The steps of a kind that stand first, taken away."""
    found: list[S] = []
    while rest and isinstance(rest[0], kind):
        found.append(rest[0])
        del rest[0]
    return found


def _step(text: str, method: Callable[[str], Ranks]) -> Step:
    given = spec.split(text)
    if given.name not in STEPS:
        raise SpecError(f"no step {given.name!r}; there are: {', '.join(STEPS)}")
    step = STEPS[given.name]
    parameters: dict[str, Any] = dict(given.parameters)
    if given.depth is not None and not step.counted:
        raise SpecError(f"{given.name} has no number behind @")
    if step.counted and "count" in parameters:
        raise SpecError(f"{given.name}: write the number behind @, {given.name}@100")
    inner = () if not given.inner else (method(given.inner),)
    bound = spec.bind(given.name, step, parameters)
    if given.depth is not None:
        bound["count"] = given.depth
    return step(*inner, **bound)
