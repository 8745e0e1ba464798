"""The values that every other module speaks of: queries, documents, candidates, rankings, usage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple, overload


class Status(StrEnum):
    """How an ask ended.

    The first three carry a usable value; `TRUNCATED` may carry the part that arrived; the others
    never carry one, so no failure can be read as a ranking.
    """

    OK = "ok"
    REPAIRED = "repaired"  # complete after dropping repeated or unknown identifiers
    PARTIAL = "partial"  # something was missing, the rest is usable
    TRUNCATED = "truncated"  # the token limit cut the reply
    THINKING = "thinking"  # the token limit was reached before the model had done thinking
    MALFORMED = "malformed"  # a reply, but without what was asked for
    REFUSED = "refused"  # the model or a content filter declined
    FAILED = "failed"  # no reply: transport, server or context error
    UNASKED = "unasked"  # never sent, because a cap was reached


@dataclass(frozen=True, slots=True)
class Query:
    """An information need, with the identifier that the run and the judgements use."""

    id: str
    text: str


@dataclass(frozen=True, slots=True)
class Document:
    """A passage that can be shown to a model.

    Two documents are the same when their ids are, never because their texts are. `metadata` is
    carried along untouched and takes no part in equality.
    """

    id: str
    text: str
    title: str = ""
    metadata: Mapping[str, object] = field(default_factory=dict, compare=False, repr=False)

    @property
    def contents(self) -> str:
        """Title and text as one string, as BEIR indexes them."""
        return f"{self.title} {self.text}".strip() if self.title else self.text


@dataclass(frozen=True, slots=True)
class Candidate:
    """A document with its first-stage score; candidates stand in first-stage order."""

    document: Document
    score: float = 0.0


class Ordering(NamedTuple):
    """What a reranking method returns for n candidates.

    `order` is a permutation of range(n), best first. `scores[i]` is the raw model score of
    candidate i, or None where the method gave it none. `evidence[i]` is the passage of candidate
    i that decided its place, or None where the whole document did; it is empty where all did.
    `ranked` is how many of the first places the method settled: those behind them were left as they
    stood and say nothing of one another. None: all places.
    """

    order: tuple[int, ...]
    scores: tuple[float | None, ...]
    evidence: tuple[str | None, ...] = ()
    ranked: int | None = None

    @property
    def settled(self) -> int:
        """How many of the first places the method settled, as a number."""
        return len(self.order) if self.ranked is None else self.ranked


@dataclass(frozen=True, slots=True)
class Hit:
    """One place in a ranking.

    `score` is strictly decreasing down the ranking; `model_score` is what the method computed
    and `first_stage_rank` (from 1) and `first_stage_score` are where the document came from.
    `passage` is the part of the document that decided, where it was judged in parts.
    """

    document: Document
    score: float
    rank: int
    model_score: float | None = None
    first_stage_rank: int = 0
    first_stage_score: float = 0.0
    passage: str | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens as the backend counted them. Adds up with `+`."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.cached_tokens + other.cached_tokens,
            self.reasoning_tokens + other.reasoning_tokens,
        )

    @property
    def total(self) -> int:
        """Prompt and completion tokens together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Tally:
    """What a plan cost: asks by outcome, rounds one after another, tokens, passages cut short.

    `failures` are the asks that ended without anything usable, those never sent left out; a reply
    that was cut off may still be usable. `reused` answers came from the journal, and
    `reused_usage` is what they once cost; `usage` is that of the others. `stages` has the same for
    each stage of a cascade. `problems` says of each outcome without a value what was wrong the
    first time.
    """

    outcomes: Mapping[Status, int] = field(default_factory=dict)
    rounds: int = 0
    reused: int = 0
    cut: int = 0
    usage: Usage = Usage()
    failures: int = 0
    reused_usage: Usage = Usage()
    stages: Mapping[str, Tally] = field(default_factory=dict)
    problems: Mapping[Status, str] = field(default_factory=dict)

    def __add__(self, other: Tally) -> Tally:
        statuses = [s for s in Status if s in self.outcomes or s in other.outcomes]
        return Tally(
            {s: self.outcomes.get(s, 0) + other.outcomes.get(s, 0) for s in statuses},
            max(self.rounds, other.rounds),
            self.reused + other.reused,
            self.cut + other.cut,
            self.usage + other.usage,
            self.failures + other.failures,
            self.reused_usage + other.reused_usage,
            {
                stage: self.stages.get(stage, Tally()) + other.stages.get(stage, Tally())
                for stage in {**self.stages, **other.stages}
            },
            {**other.problems, **self.problems},
        )

    @property
    def asks(self) -> int:
        """How many asks were answered, from the model or from the journal."""
        return sum(self.outcomes.values()) - self.outcomes.get(Status.UNASKED, 0)

    @property
    def unasked(self) -> int:
        """How many asks a cap kept from being sent."""
        return self.outcomes.get(Status.UNASKED, 0)


@dataclass(frozen=True, slots=True)
class Ranking(Sequence[Hit]):
    """The hits of one query, best first, with what the ranking cost."""

    query: Query
    hits: tuple[Hit, ...]
    tally: Tally = Tally()

    @overload
    def __getitem__(self, index: int) -> Hit: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Hit]: ...
    def __getitem__(self, index: int | slice) -> Hit | Sequence[Hit]:
        return self.hits[index]

    def __len__(self) -> int:
        return len(self.hits)

    def __iter__(self) -> Iterator[Hit]:
        return iter(self.hits)
