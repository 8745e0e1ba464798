"""What a recipe makes: examples, with where they came from; and what every stage of it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, fields, replace
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import llmrank.spec as spec
from llmrank.errors import SpecError
from llmrank.plan import Need, Plan, Vectors
from llmrank.types import Candidate, Document, Ordering, Query

SOURCE = "source"
"""The origin of a passage that the query was written for."""
WRITTEN = "written"
"""The origin of a passage that a model wrote."""
QUERY = "query"
"""The origin of a query that no source answers: the pair of it and a source is a negative one. Its
text is no passage for the query of the example, so it never has a label."""


class Span(NamedTuple):
    """The part of a document that a query was written for: characters of title and text."""

    document: Document
    start: int
    end: int

    @property
    def text(self) -> str:
        """What was shown."""
        return self.document.contents[self.start : self.end]


@dataclass(frozen=True, slots=True)
class Passage:
    """A document beside a query.

    `label` is a grade: 0 for a negative, 1 or more for a positive, None where nothing is known, as
    of a candidate that is too near to a positive one to be a negative. `scores` are raw, by the
    stage that gave them. `origin` is `source`, the first stage that found it, or that of a text
    which is in no corpus.
    """

    document: Document
    origin: str
    label: int | None = None
    scores: Mapping[str, float] = field(default_factory=dict)

    @property
    def in_corpus(self) -> bool:
        """Whether it is a document of the corpus."""
        return self.origin not in (WRITTEN, QUERY)

    def scored(self, name: str, value: float | None) -> Passage:
        """With one score more; None is none."""
        return self if value is None else replace(self, scores={**self.scores, name: value})


class Verdict(NamedTuple):
    """What a stage says of an example: the value it measured and the bound it was held against."""

    stage: str
    passed: bool
    value: float | None = None
    bound: float | None = None
    note: str = ""


class Calls(NamedTuple):
    """What one stage had one prompt answer for one example.

    `params` are those sent, `statuses` count the outcomes, and the journal has the replies under
    `keys`.
    """

    stage: str
    prompt: str
    sha256: str
    model: str
    params: Mapping[str, object]
    calls: int
    statuses: Mapping[str, int]
    prompt_tokens: int
    completion_tokens: int
    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Example:
    """A query written for documents, the passages beside it, and how all that came to be.

    `id` is that of the first document and a number; `query` is empty where the model wrote none.
    """

    id: str
    query: str
    kind: str
    sources: tuple[Span, ...]
    passages: tuple[Passage, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    calls: tuple[Calls, ...] = ()
    split: str = ""

    @property
    def kept(self) -> bool:
        """Whether every stage passed it."""
        return bool(self.query) and all(verdict.passed for verdict in self.verdicts)

    @property
    def positives(self) -> dict[str, int]:
        """The grades of the documents of the corpus that are relevant.

        Those of the sources are 1 unless their passages have others.
        """
        grades = dict.fromkeys((span.document.id for span in self.sources), 1)
        for passage in self.passages:
            if passage.in_corpus:
                grades[passage.document.id] = passage.label or 0
        return {name: grade for name, grade in grades.items() if grade > 0}

    @property
    def asked(self) -> Query:
        """The query with the id of the example."""
        return Query(self.id, self.query)

    @property
    def source(self) -> Document:
        """The document that the query was written for, of several the first."""
        return self.sources[0].document

    def judged(
        self,
        stage: Step,
        passed: bool,
        value: float | None = None,
        bound: float | None = None,
        note: str = "",
    ) -> Example:
        """With the verdict of a step."""
        verdict = Verdict(str(stage), passed, value, bound, note)
        return replace(self, verdicts=(*self.verdicts, verdict))


class HeldOut(NamedTuple):
    """Test queries and the ids of the documents that are relevant to one: nothing to train on."""

    queries: Sequence[Query]
    documents: frozenset[str]


class World(Protocol):
    """What stages may look into besides their example."""

    @property
    def held_out(self) -> HeldOut | None:
        """Test data that examples must not be near to."""
        ...

    def search(self, text: str, k: int, by: str) -> Plan[list[Candidate]]:
        """The k best documents for a text by `bm25`, `dense` or `hybrid`, with their texts."""
        ...

    def vectors(self) -> tuple[Sequence[str], Vectors]:
        """The ids of all documents and their vectors, shape (documents, dimensions)."""
        ...

    def language(self, text: str) -> Mapping[str, float]:
        """The probability of each language, by its code."""
        ...


class Ranks(Protocol):
    """A reranking method, as `llmrank.rerank` reads it from a spec."""

    @property
    def needs(self) -> Sequence[Need]:
        """What it asks."""
        ...

    def plan(self, query: Query, candidates: Sequence[Candidate]) -> Plan[Ordering]:
        """Order candidates, which stand in first-stage order."""
        ...


@dataclass(frozen=True)
class Step:
    """One step of a recipe with its parameters; its `str` can be parsed again.

    `paper` is where the step comes from. `ranks` says whether a reranking method stands first in
    the brackets, as `method`: never, may, must. Where it is `counted` a number behind `@` says how
    many, as `count`.
    """

    name: ClassVar[str]
    paper: ClassVar[str] = ""
    ranks: ClassVar[Literal["never", "may", "must"]] = "never"
    counted: ClassVar[bool] = False
    method: Any = None
    _: KW_ONLY

    def __post_init__(self) -> None:
        if (self.method is None) != (self.ranks == "never") and self.ranks != "may":
            which = "takes no reranking method" if self.method else "needs a reranking method"
            raise SpecError(f"{self.name} {which}, as in judge(yesno)")
        self.check()

    def check(self) -> None:
        """Raise `SpecError` for parameters that make no sense."""

    def __str__(self) -> str:
        given = {one.name: getattr(self, one.name) for one in fields(self) if one.kw_only}
        count = f"@{given.pop('count')}" if self.counted else ""
        return spec.written(self.name, given, str(self.method or "")) + count

    @property
    def needs(self) -> list[Need]:
        """What it asks of a model."""
        return []

    @property
    def searches(self) -> frozenset[str]:
        """The indexes that it needs: `bm25`, `dense`."""
        return frozenset()


class Stage(Step):
    """A step that maps every example that is still kept to an example.

    `begin` is run once and gives what the stage knows of all examples, `plan` runs for many
    examples at the same time, and `settle` for one after another, in order: it alone may change
    what `begin` gave.
    """

    def begin(self, world: World) -> Plan[Any]:
        """What the stage remembers from one example to the next."""
        yield from ()

    def plan(self, example: Example, world: World) -> Plan[Any]:
        """What has to be asked and searched for one example."""
        yield from ()

    def settle(self, example: Example, found: Any, memory: Any) -> Example:  # noqa: ANN401
        """The example, changed by what was found."""
        raise NotImplementedError


class DocumentFilter(Step):
    """A step that leaves documents out before anything is written for them; else as a `Stage`."""

    def begin(self, world: World) -> Plan[Any]:
        """What the filter remembers from one document to the next."""
        yield from ()

    def plan(self, document: Document, world: World) -> Plan[Any]:
        """What has to be asked for one document."""
        yield from ()

    def keeps(self, document: Document, found: Any, memory: Any) -> bool:  # noqa: ANN401
        """Whether something is written for the document."""
        raise NotImplementedError


class Writer(Step):
    """A step that writes queries for a document."""

    def plan(self, document: Document, world: World, shown: Sequence[Shot]) -> Plan[list[Example]]:
        """Examples, those without a query too; their ids are set by whoever runs it."""
        yield from ()
        raise NotImplementedError


class Shot(NamedTuple):
    """A document and a query that it answers, shown to a writer."""

    document: str
    query: str


def index_of(by: str) -> frozenset[str]:
    """The indexes that a search by `bm25`, `dense` or `hybrid` needs; `SpecError` for others."""
    found = {"bm25": {"bm25"}, "dense": {"dense"}, "hybrid": {"bm25", "dense"}}.get(by)
    if found is None:
        raise SpecError(f"by is one of bm25, dense, hybrid, not {by!r}")
    return frozenset(found)
