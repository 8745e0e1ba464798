"""Labels and scores of the passages beside the queries."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from llmrank.report.parts import Record
from llmrank.report.sample import Numbers
from llmrank.synth.base import QUERY, SOURCE, WRITTEN

NOT_MINED = (SOURCE, WRITTEN, QUERY)
"""Origins of passages that no first stage found."""
LEAST_PASSAGES = 3
"""Passages that an example must have for the order of two scores to be compared."""


class Labels(NamedTuple):
    """The passages of one origin by their labels."""

    origin: str
    negative: int
    positive: int
    undecided: int

    @property
    def all(self) -> int:
        """How many there are."""
        return self.negative + self.positive + self.undecided


@dataclass
class Agreement:
    """How two scores order the passages of an example alike: Spearman's rho, averaged."""

    total: float = 0.0
    examples: int = 0
    passages: int = 0

    @property
    def rho(self) -> float:
        """The mean over the examples, from -1 to 1."""
        return self.total / self.examples


@dataclass
class Passages:
    """Labels and scores of the passages beside the queries."""

    origins: Counter[tuple[str, str]] = field(default_factory=Counter)
    margins: dict[str, Numbers] = field(default_factory=dict)
    agreements: dict[tuple[str, str], Agreement] = field(default_factory=dict)

    def add(self, example: Record) -> None:
        """Count one more example; margins are those of the kept ones."""
        passages = example.get("passages") or ()
        for passage in passages:
            self.origins[str(passage["origin"]), _judged(passage.get("label"))] += 1
        if example["kept"]:
            for name, margin in margins(passages):
                if name not in self.margins:
                    self.margins[name] = Numbers(f"margin/{name}")
                self.margins[name].add(margin)
        for pair, rho, n in agreements(passages):
            found = self.agreements.setdefault(pair, Agreement())
            found.total, found.examples = found.total + rho, found.examples + 1
            found.passages += n

    @property
    def labels(self) -> list[Labels]:
        """Every origin."""
        kinds = ("negative", "positive", "undecided")
        origins = dict.fromkeys(origin for origin, _ in self.origins)
        return [Labels(one, *(self.origins[one, kind] for kind in kinds)) for one in origins]

    @property
    def mined(self) -> list[Labels]:
        """The origins of candidates for negatives, and all of them together."""
        found = [row for row in self.labels if row.origin not in NOT_MINED]
        if len(found) < 2:
            return found
        negative, positive, undecided = (sum(int(row[i]) for row in found) for i in (1, 2, 3))
        return [*found, Labels("together", negative, positive, undecided)]


def _judged(label: int | None) -> str:
    return "undecided" if label is None else "positive" if label > 0 else "negative"


def margins(passages: Sequence[Record]) -> Iterator[tuple[str, float]]:
    """By score: the lowest of a positive passage less the highest of a negative one."""
    low: dict[str, float] = {}
    high: dict[str, float] = {}
    for passage in passages:
        label = passage.get("label")
        if label is None:
            continue
        for name, score in (passage.get("scores") or {}).items():
            if label > 0:
                low[name] = min(score, low.get(name, score))
            else:
                high[name] = max(score, high.get(name, score))
    for name in low:
        if name in high:
            yield name, low[name] - high[name]


def agreements(passages: Sequence[Record]) -> Iterator[tuple[tuple[str, str], float, int]]:
    """Spearman's rho of two scores over the passages that have both, and how many those are.

    Pairs of scores with fewer than LEAST_PASSAGES or one that is the same for all are left out.
    """
    names = sorted({name for passage in passages for name in passage.get("scores") or ()})
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            scores = [p["scores"] for p in passages if p.get("scores")]
            both = [(s[first], s[second]) for s in scores if first in s and second in s]
            if len(both) >= LEAST_PASSAGES:
                rho = spearman([a for a, _ in both], [b for _, b in both])
                if rho is not None:
                    yield (first, second), rho, len(both)


def spearman(a: Sequence[float], b: Sequence[float]) -> float | None:
    """The correlation of the ranks, equal numbers sharing theirs; None where one has no order."""
    x, y = _ranks(a), _ranks(b)
    middle = (len(x) + 1) / 2
    across = sum((i - middle) * (j - middle) for i, j in zip(x, y, strict=True))
    squares = [sum((i - middle) ** 2 for i in ranks) for ranks in (x, y)]
    return across / (squares[0] * squares[1]) ** 0.5 if all(squares) else None


def _ranks(numbers: Sequence[float]) -> list[float]:
    """Ranks from 1; equal numbers have the mean of theirs."""
    places: dict[float, list[int]] = {}
    for place, number in enumerate(sorted(numbers), start=1):
        places.setdefault(number, []).append(place)
    return [(places[number][0] + places[number][-1]) / 2 for number in numbers]
