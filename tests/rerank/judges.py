"""Judges that answer asks of plans directly: perfect ones, and ones that fail."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, NamedTuple

from llmrank.plan import (
    Answer,
    Ask,
    Attend,
    Choice,
    Drive,
    Grade,
    Grades,
    Likelihood,
    LogProb,
    Order,
    Permutation,
    Pick,
    Plan,
)
from llmrank.rerank import METHODS
from llmrank.types import Candidate, Document, Ordering, Query, Status

INNER = "sliding(window=6, stride=3)"
SPECS = [f"{name}({INNER})" if family.inner else name for name, family in METHODS.items()]
"""Every method with its defaults; those that rank by another one rank by windows."""

Judge = Callable[[Ask[Any]], Answer[Any]]

QUERY = Query("q", "small query")
FAILED: Answer[Any] = Answer(status=Status.FAILED, problem="connection lost")


class Ran(NamedTuple):
    """What a plan returned, how many calls it took, and how many rounds."""

    ordering: Ordering
    calls: int
    rounds: int


def candidates(count: int) -> list[Candidate]:
    """d0, d1, ... in first-stage order."""
    return [Candidate(Document(f"d{i}", "t"), float(count - i)) for i in range(count)]


def grades(count: int, *, distinct: bool = True) -> list[int]:
    """A grade for every candidate, in an order of its own for every count."""
    random = Random(count)
    found = list(range(count)) if distinct else [random.randrange(4) for _ in range(count)]
    random.shuffle(found)
    return found


def best_first(found: Sequence[int]) -> list[int]:
    """Positions by grade, equal ones in the order they came in."""
    return sorted(range(len(found)), key=lambda i: (-found[i], i))


class Perfect:
    """Answers asks from grades by document id, and counts them."""

    def __init__(self, found: Sequence[int]) -> None:
        self.grades = {f"d{i}": grade for i, grade in enumerate(found)}
        self.asks: list[Ask[Any]] = []

    def __call__(self, item: Ask[Any]) -> Answer[Any]:
        self.asks.append(item)
        return Answer(status=Status.OK, value=self.value(item))

    def value(self, item: Ask[Any]) -> object:
        """The right answer."""
        if isinstance(item, Order | Pick | Attend):
            values = [self.grades[doc.id] for doc in item.docs]
            order = tuple(best_first(values))
            if isinstance(item, Order):
                return Permutation(order)
            if isinstance(item, Attend):
                return tuple(map(float, values))
            if item.by == "text":
                return Choice(order[: item.n])
            return Choice(order[: item.n], _softmax([value / 4 for value in values]))
        if isinstance(item, Grade):
            grade = self.grades[item.doc.id]
            # Labels stand best first; the more mass on the first, the better.
            mass = 1 / (1 + math.exp(-grade / 8))
            rest = (1 - mass) / (len(item.labels) - 1)
            return Grades((mass, *[rest] * (len(item.labels) - 1)), 1.0)
        assert isinstance(item, Likelihood)
        return LogProb(self.grades[item.doc.id] - 100.0, 3)


def _softmax(values: Sequence[float]) -> tuple[float, ...]:
    top = max(values)
    mass = [math.exp(value - top) for value in values]
    return tuple(part / math.fsum(mass) for part in mass)


class Failing(Perfect):
    """Perfect, but the calls with these numbers fail."""

    def __init__(self, found: Sequence[int], failing: set[int]) -> None:
        super().__init__(found)
        self.failing = failing

    def __call__(self, item: Ask[Any]) -> Answer[Any]:
        answer = super().__call__(item)
        return FAILED if len(self.asks) - 1 in self.failing else answer


class Erratic(Perfect):
    """Answers at random: any order, often only a part of it, and sometimes nothing."""

    def __init__(self, seed: int, failures: float = 0.2) -> None:
        super().__init__([])
        self.rng, self.failures = Random(seed), failures

    def __call__(self, item: Ask[Any]) -> Answer[Any]:
        answer = super().__call__(item)
        return FAILED if self.rng.random() < self.failures else answer

    def value(self, item: Ask[Any]) -> object:
        assert isinstance(item, Order | Pick)
        size = len(item.docs)
        order = tuple(self.rng.sample(range(size), size))
        if isinstance(item, Order):
            return Permutation(order, self.rng.choice([None, self.rng.randint(0, size)]))
        if item.by == "text":
            return Choice(order[: self.rng.randint(0, item.n)])
        return Choice(order[: item.n], tuple(self.rng.choice([0.0, 0.1, 0.2]) for _ in order))


def shown(item: Ask[Any]) -> list[str]:
    """The ids of the documents of an ask, as they stand there."""
    assert isinstance(item, Order | Pick)
    return [document.id for document in item.docs]


def noisy(seed: int) -> Judge:
    """Picks at random, neither consistent nor transitive, the same for the same question; some
    fail."""

    def judge(item: Ask[Any]) -> Answer[Any]:
        assert isinstance(item, Pick)
        random = Random(f"{seed}/{[doc.id for doc in item.docs]}/{item.by}")
        if random.random() < 0.1:
            return FAILED
        mass = [random.random() for _ in item.docs]
        likely = tuple(part / sum(mass) for part in mass) if item.by == "labels" else None
        return Answer(status=Status.OK, value=Choice((mass.index(max(mass)),), likely))

    return judge


def run(plan: Plan[Ordering], judge: Judge, random: Random | None = None) -> Ran:
    """Drive a plan to its end; with `random` the answers come one by one in an order of its own."""
    running = Drive(plan)
    tickets, calls = running.start(), 0
    while tickets:
        ticket = tickets.pop(random.randrange(len(tickets)) if random else 0)
        calls += 1
        tickets += running.answer(ticket, judge(ticket.ask))
    return Ran(running.result, calls, running.rounds)
