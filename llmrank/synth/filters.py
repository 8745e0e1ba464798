"""Filters for written queries; each verdict carries the number it was reached by."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, Literal

from llmrank.errors import SpecError
from llmrank.plan import Grade, Need, Plan, ask
from llmrank.synth.base import Example, Stage, World, index_of
from llmrank.synth.text import copied, words
from llmrank.types import Candidate, Document


@dataclass(frozen=True)
class Length(Stage):
    """A query of too few words says too little to be searched for, and none has so many."""

    name: ClassVar[str] = "length"

    _: KW_ONLY
    least: int = 3
    most: int = 64

    def check(self) -> None:
        """Raise `SpecError` for bounds that nothing is between."""
        if not 0 <= self.least <= self.most:
            raise SpecError("length: least must be at least 0 and at most most")

    def settle(self, example: Example, found: Any, memory: Any) -> Example:  # noqa: ANN401
        """The value is the number of words."""
        count = len(words(example.query))
        bound = self.least if count < self.least else self.most
        return example.judged(self, self.least <= count <= self.most, count, bound)


@dataclass(frozen=True)
class Copied(Stage):
    """At most the share `most` of a query's words may stand in one run in its source.

    What is copied can be found by its words alone, which teaches a retriever nothing.
    """

    name: ClassVar[str] = "copied"

    _: KW_ONLY
    most: float = 0.8

    def check(self) -> None:
        """Raise `SpecError` for a share that is none."""
        check_share(self, self.most)

    def settle(self, example: Example, found: Any, memory: Any) -> Example:  # noqa: ANN401
        """The value is the share."""
        share = max(copied(example.query, span.text).share for span in example.sources)
        return example.judged(self, share <= self.most, round(share, 4), self.most)


@dataclass(frozen=True)
class Language(Stage):
    """The query must be in the language of its source, or at least not clearly in another.

    Its probability must be at least `least` times that of the likeliest one: of a few technical
    terms no language is likely.
    """

    name: ClassVar[str] = "language"

    _: KW_ONLY
    least: float = 0.01

    def check(self) -> None:
        """Raise `SpecError` for a share that is none."""
        check_share(self, self.least)

    def plan(self, example: Example, world: World) -> Plan[tuple[str, float]]:
        """The language of the source, and its probability for the query over the largest."""
        yield from ()
        own = world.language(example.sources[0].text)
        code = max(own, key=lambda key: own[key])
        found = world.language(example.query)
        return code, found.get(code, 0.0) / max(found.values())

    def settle(self, example: Example, found: Any, memory: Any) -> Example:  # noqa: ANN401
        """The value is the share, the note the language of the source."""
        code, value = found
        return example.judged(self, value >= self.least, round(value, 4), self.least, code)


@dataclass(frozen=True)
class SelfContained(Stage):
    """A model must say that the query can be understood without its source."""

    name: ClassVar[str] = "self_contained"

    _: KW_ONLY
    least: float = 0.5

    def check(self) -> None:
        """Raise `SpecError` for a probability that is none."""
        check_share(self, self.least)

    @property
    def needs(self) -> list[Need]:
        """One judgement of the query alone."""
        return [Need(Grade, task="self_contained", labels=("yes", "no"))]

    def plan(self, example: Example, world: World) -> Plan[Any]:
        """The probability of yes, None where there is no answer."""
        item = Grade(example.asked, Document("", ""), task="self_contained")
        return (yield from ask(item))

    def settle(self, example: Example, found: Any, memory: Any) -> Example:  # noqa: ANN401
        """The value is the probability; without an answer it is dropped."""
        value = found.value.probabilities[0] if found.value is not None else None
        passed = value is not None and value >= self.least
        return example.judged(self, passed, value, self.least, found.problem)


@dataclass(frozen=True)
class Judge(Stage):
    """A reranking method must score each source at least `least`, as `judge(grade(labels=4))`.

    What the score is says the method: a probability, or an expected grade.
    """

    name: ClassVar[str] = "judge"
    ranks: ClassVar[Literal["never", "may", "must"]] = "must"

    _: KW_ONLY
    least: float = 0.5

    def check(self) -> None:
        """Raise `SpecError` for a bound that is no number."""
        if math.isnan(self.least):
            raise SpecError("judge: least must be a number")

    @property
    def needs(self) -> list[Need]:
        """Those of the method."""
        return list(self.method.needs)

    def plan(self, example: Example, world: World) -> Plan[list[float | None]]:
        """The score of every source."""
        candidates = [Candidate(span.document) for span in example.sources]
        ordering = yield from self.method.plan(example.asked, candidates)
        return list(ordering.scores)

    def settle(self, example: Example, found: Any, memory: Any) -> Example:  # noqa: ANN401
        """The value is the lowest score; a source without one is not passed."""
        known = [score for score in found if score is not None]
        value = min(known) if len(known) == len(found) else None
        note = "" if value is not None else "not scored"
        return example.judged(
            self, value is not None and value >= self.least, value, self.least, note
        )


@dataclass(frozen=True)
class RoundTrip(Stage):
    """Every source must be among the first k that the query finds.

    The consistency filter of Promptagator; with a reranking method, `round_trip(yesno@20, k=1)`,
    among the first k after it, as in InPars-v2 and CADET.
    """

    name: ClassVar[str] = "round_trip"
    paper: ClassVar[str] = "Promptagator, arXiv 2209.11755; CADET, arXiv 2505.19274"
    ranks: ClassVar[Literal["never", "may", "must"]] = "may"

    _: KW_ONLY
    k: int = 20
    by: str = "bm25"
    depth: int = 100

    def check(self) -> None:
        """Raise `SpecError` for numbers below 1 or an index that is none."""
        index_of(self.by)
        if not 1 <= self.k <= self.depth:
            raise SpecError("round_trip: k must be at least 1 and at most depth")

    @property
    def needs(self) -> list[Need]:
        """Those of the method, if there is one."""
        return [] if self.method is None else list(self.method.needs)

    @property
    def searches(self) -> frozenset[str]:
        """What the query is searched by."""
        return index_of(self.by)

    def plan(self, example: Example, world: World) -> Plan[list[str]]:
        """The ids of the documents found, best first."""
        found = yield from world.search(example.query, self.depth, self.by)
        if self.method is None or not found:
            return [candidate.document.id for candidate in found]
        ordering = yield from self.method.plan(example.asked, found)
        return [found[place].document.id for place in ordering.order]

    def settle(self, example: Example, found: Any, memory: Any) -> Example:  # noqa: ANN401
        """The value is the rank of the source, the worst of several; None beyond `depth`."""
        ranks = {name: rank for rank, name in enumerate(found, start=1)}
        worst = max(ranks.get(span.document.id, math.inf) for span in example.sources)
        value = None if worst == math.inf else worst
        return example.judged(self, worst <= self.k, value, self.k)


def check_share(stage: Stage, share: float, *, above: bool = False) -> None:
    """`SpecError` unless a share is between 0 and 1, or `above` 0."""
    if not 0 <= share <= 1 or (above and not share):
        raise SpecError(f"{stage.name}: a share is between 0 and 1, not {share}")
