"""The parts of the report: each sees every example once and keeps counts and small samples.

An example is a line of `examples.jsonl`. Memory grows with the number of stages, kinds, origins
and scores, never with that of the examples.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from llmrank.report.sample import Names, Numbers, Reservoir, is_drawable

Record = Mapping[str, Any]

NO_QUERY = "no query was written"
NO_VERDICT = "no verdict says why"
KEPT_SHOWN, DROPPED_SHOWN = 12, 4
POINTS = 2_000


class Part(Protocol):
    """What every part does with an example."""

    def add(self, example: Record) -> None:
        """Count one more example."""
        ...


def fate(example: Record) -> str | None:
    """What dropped an example: a stage, NO_QUERY or NO_VERDICT; None where it is kept."""
    if example["kept"]:
        return None
    if not example["query"]:
        return NO_QUERY
    failed = failure(example)
    return NO_VERDICT if failed is None else str(failed["stage"])


def failure(example: Record) -> Record | None:
    """The first verdict that an example did not pass."""
    verdicts: list[Record] = example.get("verdicts") or []
    return next((verdict for verdict in verdicts if not verdict["passed"]), None)


class Step(NamedTuple):
    """One bar of the funnel: how many examples were still in after it, and how many it lost."""

    name: str
    left: int
    lost: int


@dataclass
class Funnel:
    """How many examples got how far; `order` has the stages as they stand in the recipe."""

    order: Sequence[str] = ()
    asked: int = 0
    written: int = 0
    kept: int = 0
    splits: Counter[str] = field(default_factory=Counter)
    _stages: dict[str, None] = field(default_factory=dict)
    _fates: Counter[str | None] = field(default_factory=Counter)

    def add(self, example: Record) -> None:
        """Count one more example."""
        self.asked += 1
        self.written += bool(example["query"])
        self.kept += bool(example["kept"])
        self._fates[fate(example)] += 1
        self._stages |= dict.fromkeys(v["stage"] for v in example.get("verdicts") or ())
        if example["kept"] and example.get("split"):
            self.splits[str(example["split"])] += 1

    @property
    def steps(self) -> list[Step]:
        """Asked for, written, after every stage that gives verdicts, kept."""
        found = [
            Step("asked for", self.asked, 0),
            Step("written", self.written, self._fates[NO_QUERY]),
        ]
        places = {stage: place for place, stage in enumerate(self.order)}
        for stage in sorted(self._stages, key=lambda stage: places.get(stage, len(places))):
            found.append(Step(stage, found[-1].left - self._fates[stage], self._fates[stage]))
        return [*found, Step("kept", self.kept, self._fates[NO_VERDICT])]


@dataclass
class Pair:
    """A number of every example, of those kept and of those dropped."""

    kept: Numbers
    dropped: Numbers

    @classmethod
    def of(cls, name: str) -> Pair:
        """An empty one; the name is the seed of the samples."""
        return cls(Numbers(f"{name}/kept"), Numbers(f"{name}/dropped"))

    @property
    def groups(self) -> dict[str, Numbers]:
        """The two groups, those with a number."""
        return {n: v for n, v in (("kept", self.kept), ("dropped", self.dropped)) if v.seen}

    def add(self, value: float, *, kept: bool) -> None:
        """Count one more number."""
        (self.kept if kept else self.dropped).add(value)


class Share(NamedTuple):
    """How many there are, and how many of them are kept."""

    name: str
    all: int
    kept: int


@dataclass
class Shares:
    """Examples by a name that each has, those kept apart."""

    _all: Counter[str] = field(default_factory=Counter)
    _kept: Counter[str] = field(default_factory=Counter)

    def add(self, name: str, *, kept: bool) -> None:
        """Count one more example."""
        self._all[name] += 1
        self._kept[name] += kept

    @property
    def rows(self) -> list[Share]:
        """The most frequent first."""
        return [Share(name, count, self._kept[name]) for name, count in self._all.most_common()]


@dataclass
class Queries:
    """Lengths and kinds of the queries, and how much of them is copied from the source."""

    words: Pair = field(default_factory=lambda: Pair.of("words"))
    copied: Pair = field(default_factory=lambda: Pair.of("copied"))
    bounds: set[float] = field(default_factory=set)
    kinds: Shares = field(default_factory=Shares)

    def add(self, example: Record) -> None:
        """Count one more example; those without a query have no length."""
        if not example["query"]:
            return
        kept = bool(example["kept"])
        self.words.add(len(example["query"].split()), kept=kept)
        if example.get("kind"):
            self.kinds.add(str(example["kind"]), kept=kept)
        for verdict in example.get("verdicts") or ():
            if _named(verdict["stage"]) == "copied" and verdict.get("value") is not None:
                self.copied.add(verdict["value"], kept=kept)
                bound = verdict.get("bound")
                if bound is not None and is_drawable(bound):
                    self.bounds.add(bound)


def _named(stage: str) -> str:
    return stage.partition("(")[0].strip()


@dataclass
class Documents:
    """The documents that queries were written for."""

    asked: Names = field(default_factory=Names)
    kept: Names = field(default_factory=Names)
    linked: int = 0

    def add(self, example: Record) -> None:
        """Count one more example."""
        found = {str(source["document"]) for source in example.get("sources") or ()}
        self.linked += len(found) > 1
        for document in found:
            self.asked.add(document)
            if example["kept"]:
                self.kept.add(document)


class Place(NamedTuple):
    """An example on the map of topics."""

    x: float
    y: float
    kept: bool
    told: str


class Topics:
    """Where the examples lie on a map given for them or their documents.

    The map has by id of an example, or of its first document, a `point` (x, y), a `cluster` or
    both.
    """

    def __init__(self, known: Mapping[str, Record]) -> None:
        self._known = known
        self.clusters = Shares()
        self.places = Reservoir[Place](POINTS, "topics")

    def add(self, example: Record) -> None:
        """Count one more example."""
        sources = example.get("sources") or [{"document": ""}]
        found = self._known.get(example["_id"]) or self._known.get(sources[0]["document"])
        if not found or not example["query"]:
            return
        cluster, kept = found.get("cluster"), bool(example["kept"])
        told = str(example["_id"])
        if cluster is not None:
            self.clusters.add(str(cluster), kept=kept)
            told += f", cluster {cluster}"
        if found.get("point") is not None:
            x, y = map(float, found["point"])
            if is_drawable(x) and is_drawable(y):
                self.places.add(Place(x, y, kept, told))


@dataclass
class Cost:
    """What the calls of a stage cost."""

    examples: int = 0
    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    statuses: Counter[str] = field(default_factory=Counter)


@dataclass
class Spending:
    """Calls and tokens by stage, and calls by prompt."""

    stages: dict[str, Cost] = field(default_factory=dict)
    prompts: Counter[tuple[str, str]] = field(default_factory=Counter)

    def add(self, example: Record) -> None:
        """Count one more example."""
        for call in example.get("calls") or ():
            cost = self.stages.setdefault(str(call["stage"]), Cost())
            cost.examples += 1
            cost.calls += call["calls"]
            cost.prompt_tokens += call["prompt_tokens"]
            cost.completion_tokens += call["completion_tokens"]
            cost.statuses.update(call.get("statuses") or {})
            if call["prompt"]:  # embeddings have none
                self.prompts[str(call["prompt"]), str(call["sha256"])] += call["calls"]

    def others(self, told: Mapping[str, Record], steps: Sequence[str]) -> None:
        """Add the steps that no example tells of, as those that leave documents out."""
        for name in steps:
            if name not in self.stages and (one := told.get(name)):
                self.stages[name] = Cost(
                    calls=one["asks"],
                    prompt_tokens=one["prompt_tokens"],
                    completion_tokens=one["completion_tokens"],
                    statuses=Counter(one["outcomes"]),
                )


class Samples:
    """Examples drawn at random: of those kept, and of those that each stage dropped."""

    def __init__(self) -> None:
        self.kept = Reservoir[Record](KEPT_SHOWN, "kept")
        self.dropped: dict[str, Reservoir[Record]] = {}

    def add(self, example: Record) -> None:
        """See one more example."""
        why = fate(example)
        if why is None:
            self.kept.add(example)
        else:
            if why not in self.dropped:
                self.dropped[why] = Reservoir(DROPPED_SHOWN, f"dropped/{why}")
            self.dropped[why].add(example)
