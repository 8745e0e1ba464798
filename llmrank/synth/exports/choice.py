"""Which passages of an example an export takes, with their scores, and what it lacks if none."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from random import Random
from typing import Literal, NamedTuple

from llmrank.errors import SpecError
from llmrank.synth.exports.records import Line, Listed
from llmrank.types import Document

TEACHER = "teacher"
"""The score that a format takes which cannot do without one, if no other is named."""

Scale = Literal["none", "minmax", "softmax", "standard"]


class Lack(StrEnum):
    """Why an example cannot be exported."""

    POSITIVE = "no positive passage"
    NEGATIVE = "no negative passage"
    FEWER = "fewer negative passages than --negatives"
    SCORE = "no positive or no negative passage with the score"
    TIED = "no two passages with different scores"
    RIVAL = "no dropped query of the same kind for the same document"


REMEDIES: Mapping[Lack, str] = {
    Lack.POSITIVE: "look at the labels in examples.jsonl",
    Lack.NEGATIVE: "add mine(...) to the recipe and generate into the same folder again",
    Lack.FEWER: "lower --negatives, or mine more",
    Lack.SCORE: "add teacher(...) to the recipe and generate again, or name a score with --score",
    Lack.TIED: "take a teacher with finer scores",
    Lack.RIVAL: "have the recipe write several queries for each document, with filters behind",
}


@dataclass(frozen=True, slots=True)
class Needs:
    """What a format takes of an example.

    `negatives`: `none` of them, `any` number, at `least` one, or the same number (`fixed`) in every
    row. `scores`: `never`, where they are asked for (`may`), or always (`must`). `order` is for a
    ranking to be learnt, `rivals` for dropped queries beside the kept one.
    """

    negatives: Literal["none", "any", "least", "fixed"] = "none"
    scores: Literal["never", "may", "must"] = "never"
    order: bool = False
    rivals: bool = False


@dataclass(frozen=True, slots=True)
class Options:
    """What a user chose: how many negatives at most, which score, and how it is scaled."""

    negatives: int | None = None
    score: str | None = None
    scale: Scale = "none"
    seed: int = 0


class Text(NamedTuple):
    """A passage of an example: its document, number in the export, grade, and scaled score."""

    document: Document
    number: int
    label: int
    score: float | None

    @property
    def contents(self) -> str:
        """Title and text as one string."""
        return self.document.contents


@dataclass(frozen=True, slots=True)
class Choice:
    """What an export takes of one example; `values` are its scaled scores by document.

    `unscored` passages were left out because they lack the score.
    """

    line: Line
    positives: tuple[Listed, ...]
    negatives: tuple[Listed, ...]
    values: Mapping[str, float] = field(default_factory=dict)
    rivals: tuple[str, ...] = ()
    unscored: int = 0

    @property
    def passages(self) -> tuple[Listed, ...]:
        """The positives, then the negatives."""
        return self.positives + self.negatives


@dataclass(frozen=True, slots=True)
class Sample:
    """An example as a format sees it, all texts in place.

    `number` counts the examples of the export from 0, as a passage's `number` counts its documents.
    `sources` are the texts that the query was written for, `rivals` dropped queries for the same,
    and `prompt` is the chat that asks for the order of the `shuffled` passages.
    """

    id: str
    number: int
    query: str
    kind: str
    split: str
    positives: tuple[Text, ...]
    negatives: tuple[Text, ...]
    sources: tuple[str, ...] = ()
    rivals: tuple[str, ...] = ()
    prompt: tuple[Mapping[str, str], ...] = ()
    seed: int = 0

    @property
    def passages(self) -> tuple[Text, ...]:
        """The positives, then the negatives."""
        return self.positives + self.negatives

    @property
    def shuffled(self) -> list[Text]:
        """The passages in an order that tells nothing of their grades, always the same."""
        rng = Random(f"{self.seed}/{self.id}")
        return rng.sample(self.passages, len(self.passages))

    @property
    def ranked(self) -> list[Text]:
        """The passages by falling score, of equal ones the higher grade first."""
        return sorted(self.passages, key=lambda text: (-(text.score or 0.0), -text.label))


def check(name: str, needs: Needs, options: Options) -> None:
    """Raise `SpecError` for options that mean nothing to a format."""
    if options.negatives is not None and options.negatives < 1:
        raise SpecError(f"negatives must be at least 1, not {options.negatives}")
    if options.scale not in SCALES:
        raise SpecError(f"scale is one of {', '.join(SCALES)}, not {options.scale!r}")
    if options.negatives is not None and needs.negatives == "none":
        raise SpecError(f"{name} has no negatives: leave --negatives out")
    if options.score is not None and needs.scores == "never":
        raise SpecError(f"{name} has no scores: leave --score out")
    if options.scale != "none" and score_of(needs, options) is None:
        raise SpecError(f"{name} has no scores to scale without --score NAME")


def score_of(needs: Needs, options: Options) -> str | None:
    """The name of the score that an export takes, if it takes one."""
    return options.score or (TEACHER if needs.scores == "must" else None)


def choose(line: Line, needs: Needs, options: Options, rivals: Sequence[str] = ()) -> Choice | Lack:
    """The passages of an example that a format gets, or what the example lacks for it.

    Of the negatives the first come first. Scores are scaled over the passages chosen.
    """
    if needs.rivals:
        return Choice(line, (), (), rivals=tuple(rivals)) if rivals else Lack.RIVAL
    before = _judged(line, needs)
    lack = _lack(*before, needs)
    if lack is not None:
        return lack
    name = score_of(needs, options)
    positives, negatives = _judged(line, needs, name)
    if _lack(positives, negatives, needs) is not None:
        return Lack.SCORE
    unscored = sum(map(len, before)) - len(positives) - len(negatives)
    if needs.negatives == "fixed" and len(negatives) < (options.negatives or 1):
        return Lack.FEWER
    negatives = negatives[: options.negatives]
    values = _values(positives + negatives, name, options.scale)
    if needs.order and len(set(values.values())) < 2:
        return Lack.TIED
    return Choice(line, tuple(positives), tuple(negatives), values, unscored=unscored)


def _judged(
    line: Line, needs: Needs, score: str | None = None
) -> tuple[list[Listed], list[Listed]]:
    """The positives and the negatives that have the score."""
    judged = [p for p in line.passages if p.label is not None]
    if score is not None:
        judged = [p for p in judged if score in p.scores]
    negatives = [] if needs.negatives == "none" else [p for p in judged if not p.label]
    return [p for p in judged if p.label], negatives


def _lack(positives: Sequence[Listed], negatives: Sequence[Listed], needs: Needs) -> Lack | None:
    if not positives:
        return Lack.POSITIVE
    if not negatives and needs.negatives in ("least", "fixed"):
        return Lack.NEGATIVE
    return None


def _values(passages: Sequence[Listed], name: str | None, scale: Scale) -> Mapping[str, float]:
    if name is None:
        return {}
    scaled = SCALES[scale]([passage.scores[name] for passage in passages])
    return {passage.document: value for passage, value in zip(passages, scaled, strict=True)}


def _minmax(values: Sequence[float]) -> list[float]:
    # Halves, as the difference of two finite numbers may be infinite.
    low, high = min(values) / 2, max(values) / 2
    if low == high:
        return [0.5] * len(values)
    return [(value / 2 - low) / (high - low) for value in values]


def _softmax(values: Sequence[float]) -> list[float]:
    high = max(values)
    weights = [math.exp(value - high) for value in values]
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def _standard(values: Sequence[float]) -> list[float]:
    # Scaled to at most 1 first, so that no square is infinite.
    size = max(map(abs, values)) or 1.0
    values = [value / size for value in values]
    mean = math.fsum(values) / len(values)
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
    # What rounding leaves of equal numbers is no spread.
    return [(value - mean) / spread if spread > 1e-12 else 0.0 for value in values]


SCALES: Mapping[Scale, Callable[[Sequence[float]], list[float]]] = {
    "none": list,
    "minmax": _minmax,
    "softmax": _softmax,
    "standard": _standard,
}
"""How the scores of one example become those that are written: as they are; from 0 to 1 (all 0.5
where they are equal); their softmax, which sums to 1; or mean 0 and standard deviation 1 (all 0
where they are equal)."""

WORSE = frozenset({"length", "copied", "language", "self_contained", "judge", "round_trip"})
"""Stages that drop a query for what it is, not for one like it or for the passages beside it."""


def rivals(line: Line, others: Sequence[Line]) -> list[str]:
    """Queries for the same documents, of the same kind, that were dropped for what they are."""
    return [
        other.query
        for other in others
        if not other.kept
        and other.query
        and other.query != line.query
        and (other.kind, other.written_for) == (line.kind, line.written_for)
        and any(not verdict.passed and _name(verdict.stage) in WORSE for verdict in other.verdicts)
    ]


def _name(stage: str) -> str:
    return stage.partition("(")[0].partition("@")[0].strip()
