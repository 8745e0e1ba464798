"""Plans: algorithms as generators that yield rounds of asks and are sent the answers.

    Plan[T] = Generator[Sequence[Ask | Plan], Sequence[Answer | result of a sub-plan], T]

A plan has no clock, no randomness but a `random.Random` it was given, no I/O and no `async`; it
never knows which model answers. Everything in one round may be asked at the same time. A round may
hold other plans, which run side by side and whose results stand in their places.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Literal, NamedTuple, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from llmrank.types import Document, Query, Status, Usage

T = TypeVar("T")
Vectors = NDArray[np.float32]


By = Literal["text", "labels"]
"""How a choice among documents is read: from the words of the reply, or from the probabilities of
the documents' labels as its next token."""


class Permutation(NamedTuple):
    """An order of the documents shown, best first.

    Only the first `named` places were in the reply, the rest follow in the order shown; None where
    all were.
    """

    order: tuple[int, ...]
    named: int | None = None


class Choice(NamedTuple):
    """The positions picked, best first, and the probability of every position if known."""

    best: tuple[int, ...]
    probabilities: tuple[float, ...] | None = None


class Grades(NamedTuple):
    """Probability of each label, normalised over the labels; `mass` is their sum before that."""

    probabilities: tuple[float, ...]
    mass: float


class LogProb(NamedTuple):
    """Summed log-probability (nats) of a text and the number of its tokens."""

    total: float
    tokens: int

    @property
    def mean(self) -> float:
        """Log-probability per token."""
        return self.total / max(1, self.tokens)


class Written(NamedTuple):
    """A generated text and, where the backend gives it, its log-probability."""

    text: str
    logprob: LogProb | None = None


@dataclass(frozen=True, slots=True)
class Ask(Generic[T]):
    """A question to a model in the words of the field, answered with an `Answer[T]`.

    `sample` tells apart repeated draws of the same question; `problem` says what was wrong with
    the reply before, when a malformed one is asked for again; `stage` is the stage of a cascade
    that asks, for the meter alone.
    """

    sample: int = field(default=0, kw_only=True)
    problem: str = field(default="", kw_only=True)
    stage: str = field(default="", kw_only=True)


@dataclass(frozen=True, slots=True)
class Order(Ask[Permutation]):
    """Put the documents in order of relevance."""

    query: Query
    docs: tuple[Document, ...]


@dataclass(frozen=True, slots=True)
class Pick(Ask[Choice]):
    """Name the n most relevant documents, at most 26 of them being shown.

    By labels the answer holds the probability of every document to be the most relevant one.
    """

    query: Query
    docs: tuple[Document, ...]
    n: int = 1
    by: By = "text"


@dataclass(frozen=True, slots=True)
class Grade(Ask[Grades]):
    """Give the probability of each label for one document.

    The labels say how relevant it is to the query, or with a `task` what the prompt of that name
    asks, of the document or the query alone too.
    """

    query: Query
    doc: Document
    labels: tuple[str, ...] = ("yes", "no")
    task: str = ""


@dataclass(frozen=True, slots=True)
class Likelihood(Ask[LogProb]):
    """Give the log-probability of the query, given the document.

    With a `task` the prompt of that name is the condition, which also shows the `examples`, pairs
    of a document and a query.
    """

    query: Query
    doc: Document
    task: str = ""
    examples: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Attend(Ask[tuple[float, ...]]):
    """Give the relevance mass that attention puts on each document (open weights only).

    The mass is calibrated: what a query without content draws is taken off, token by token.
    """

    query: Query
    docs: tuple[Document, ...]


@dataclass(frozen=True, slots=True)
class Write(Ask[Written]):
    """Write a text. `task` names the prompt, `inputs` fill its placeholders with texts or rows."""

    task: str
    inputs: tuple[tuple[str, str | tuple[tuple[str, ...], ...]], ...]


@dataclass(frozen=True, slots=True)
class Embed(Ask[Vectors]):
    """Turn texts into vectors: an array of shape (len(texts), dimensions).

    `role` is "query" or "document", for models that encode the two differently.
    """

    texts: tuple[str, ...]
    role: str = "query"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer(Generic[T]):
    """The typed outcome of an ask. `value` is None whenever nothing can be used.

    `problem` says in words what was wrong; `reply` is the model's text as it came and `model` its
    name as the server reports it; `key` is where the journal has it all; `reused` means that the
    journal answered; `cut` counts the passages that were shortened to be shown.
    """

    status: Status
    value: T | None = None
    problem: str = ""
    reply: str = ""
    usage: Usage = Usage()
    key: str = ""
    model: str = ""
    reused: bool = False
    cut: int = 0


Plan = Generator[Sequence[Any], Sequence[Any], T]
"""Yields rounds, each a sequence of `Ask`s and `Plan`s; returns T."""

NOT_ASKED_AGAIN = frozenset({Status.FAILED, Status.UNASKED, Status.THINKING})


def ask(item: Ask[T]) -> Plan[Answer[T]]:
    """One ask as a round of its own."""
    answers = yield (item,)
    return cast("Answer[T]", answers[0])


def ask_all(items: Sequence[Ask[T]]) -> Plan[list[Answer[T]]]:
    """Many asks of one kind as one round; answers stand in the order of the asks."""
    answers: Sequence[Any] = (yield tuple(items)) if items else ()
    return list(answers)


def together(plans: Sequence[Plan[T]]) -> Plan[list[T]]:
    """Run plans side by side; results stand in the order of the plans."""
    results: Sequence[Any] = (yield tuple(plans)) if plans else ()
    return list(results)


class Need(NamedTuple):
    """What answering an ask takes: its kind, how it is read, the task of a text or a judgement.

    `labels` are those of a grade (empty where no grade is asked), `n` is the largest number of
    documents to pick in one call, and `words` the length of the passages that a method cuts
    documents into (0 where it shows them whole): no prompt may cut these again.
    """

    ask: type[Ask[Any]]
    by: By = "text"
    task: str = ""
    labels: tuple[str, ...] = ()
    n: int = 1
    words: int = 0


def need(item: Ask[Any]) -> Need:
    """What an ask needs of a backend and of the prompts."""
    if isinstance(item, Pick):
        return Need(Pick, item.by, n=item.n)
    if isinstance(item, Grade):
        return Need(Grade, task=item.task, labels=item.labels)
    if isinstance(item, Likelihood):
        return Need(Likelihood, task=item.task)
    return Need(type(item), task=item.task) if isinstance(item, Write) else Need(type(item))


def in_words(item: Ask[Any]) -> bool:
    """Whether the answer is read from words: a probability would come out the same again."""
    return isinstance(item, Order | Write) or (isinstance(item, Pick) and item.by == "text")


def reworked(plan: Plan[T], change: Callable[[Ask[Any]], Ask[Any] | Plan[Any]]) -> Plan[T]:
    """The same plan with each of its asks, those of sub-plans too, replaced by what `change` says.

    `change` gives another ask, or a plan that returns the answer.
    """
    answers: Sequence[Any] | None = None
    while True:
        try:
            items = plan.send(cast("Sequence[Any]", answers))
        except StopIteration as stop:
            return cast("T", stop.value)
        answers = yield tuple(
            change(item) if isinstance(item, Ask) else reworked(item, change) for item in items
        )


def persistent(plan: Plan[T], attempts: int = 2) -> Plan[T]:
    """The same plan, asking up to `attempts` times where words have nothing usable in them.

    Each further ask tells the model what was wrong. Failures of transport are not asked again
    here: the retry layer has done so already. Nor is a model that did not come to an end of its
    thinking: it would think as long again.
    """
    return reworked(plan, lambda item: _insist(item, attempts) if in_words(item) else item)


def staged(plan: Plan[T], stage: str) -> Plan[T]:
    """The same plan, its asks marked as those of a stage."""
    return reworked(plan, lambda item: replace(item, stage=stage))


def _insist(item: Ask[T], attempts: int) -> Plan[Answer[T]]:
    answer = yield from ask(item)
    for attempt in range(1, attempts):
        if answer.value is not None or answer.status in NOT_ASKED_AGAIN:
            break
        answer = yield from ask(
            replace(item, sample=item.sample + 1000 * attempt, problem=answer.problem)
        )
    return answer


class Ticket(NamedTuple):
    """An open ask of a running plan: where its answer has to go."""

    ask: Ask[Any]
    frame: _Frame
    slot: int
    round: int


class _Frame:
    """A plan or sub-plan in progress: the answers of its current round and how many are missing."""

    __slots__ = ("answers", "missing", "parent", "plan", "rounds", "slot")

    def __init__(self, plan: Plan[Any], parent: _Frame | None = None, slot: int = 0) -> None:
        self.plan, self.parent, self.slot = plan, parent, slot
        self.answers: list[Any] = []
        self.missing = 0
        self.rounds: int = parent.rounds if parent else 0

    def fill(self, slot: int, value: object, rounds: int) -> bool:
        """Take one result of the round; True when it was the last one missing."""
        self.answers[slot] = value
        self.rounds = max(self.rounds, rounds)
        self.missing -= 1
        return self.missing == 0


class Drive(Generic[T]):
    """A plan being driven: hands out tickets, takes answers in any order, ends with a result.

    Both drivers of the engine use this class alone, so they cannot disagree about a plan.
    """

    def __init__(self, plan: Plan[T]) -> None:
        self._root = _Frame(plan)
        self._result: T | None = None
        self.done = False

    @property
    def result(self) -> T:
        """What the plan returned; only after `done`."""
        if not self.done:
            raise RuntimeError("the plan is still waiting for answers")
        return cast("T", self._result)

    @property
    def rounds(self) -> int:
        """Rounds that had to follow one another so far: the latency of the plan in calls."""
        return self._root.rounds

    def start(self) -> list[Ticket]:
        """Run up to the first round and return its asks."""
        return self._resume(self._root)

    def answer(self, ticket: Ticket, answer: Answer[Any]) -> list[Ticket]:
        """Give the answer for a ticket; returns the asks that this opened."""
        frame = ticket.frame
        return self._resume(frame) if frame.fill(ticket.slot, answer, ticket.round) else []

    def _resume(self, frame: _Frame) -> list[Ticket]:
        opened: list[Ticket] = []
        ready = [frame]
        while ready:
            frame = ready.pop()
            try:
                # A generator's first send must be None.
                items = frame.plan.send(frame.answers or cast("list[Any]", None))
            except StopIteration as stop:
                ready.extend(self._return(frame, stop.value))
                continue
            frame.answers, frame.missing = [None] * len(items), len(items)
            if not items:
                raise ValueError("a plan yielded an empty round")
            inner = [i for i, item in enumerate(items) if not isinstance(item, Ask)]
            opened += [
                Ticket(item, frame, slot, frame.rounds + 1)
                for slot, item in enumerate(items)
                if isinstance(item, Ask)
            ]
            ready.extend(_Frame(items[slot], frame, slot) for slot in reversed(inner))
        return opened

    def _return(self, frame: _Frame, value: object) -> list[_Frame]:
        """Pass a finished plan's result up; returns the parent when that completed its round."""
        if frame.parent is None:
            self._result, self.done = cast("T", value), True
            return []
        complete = frame.parent.fill(frame.slot, value, frame.rounds)
        return [frame.parent] if complete else []


def drive(plan: Plan[T], judge: Callable[[Ask[Any]], Answer[Any]]) -> T:
    """Run a plan to its end with a function that answers every ask: for tests and simulation."""
    running = Drive(plan)
    tickets = running.start()
    while tickets:
        answered = [(ticket, judge(ticket.ask)) for ticket in tickets]
        tickets = [new for ticket, answer in answered for new in running.answer(ticket, answer)]
    return running.result
