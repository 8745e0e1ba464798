"""Writing queries for documents."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import KW_ONLY, dataclass
from random import Random
from typing import ClassVar

from llmrank.errors import SpecError
from llmrank.plan import Answer, Need, Plan, Write, Written, ask_all
from llmrank.synth.base import Example, Shot, Span, World, Writer, index_of
from llmrank.synth.text import line, normalised
from llmrank.types import Document, Status

KINDS = ("search", "question", "claim", "keywords", "title")
"""What can be written for one document, each with a prompt of its own."""

_WORD = re.compile(r"\S+")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])|\n+")
_LEAST_WORDS = 5
"""A sentence of fewer words says too little to write for."""


@dataclass(frozen=True)
class WriteQueries(Writer):
    """n queries of every kind, written from the first `words` words of a document.

    `kinds` are names joined by `+`: search, question, claim, keywords, title. At the level
    `sentence` each query is written from one sentence, drawn by `seed`, instead. Diverse kinds do
    better than any single one (CADET, arXiv 2505.19274).
    """

    name: ClassVar[str] = "write"
    paper: ClassVar[str] = "Promptagator, arXiv 2209.11755; InPars, arXiv 2202.05144"

    _: KW_ONLY
    kinds: str = "search"
    n: int = 1
    level: str = "passage"
    words: int = 256
    seed: int = 0

    def check(self) -> None:
        """Raise `SpecError` for a kind that is none, and numbers below 1."""
        for kind in self._kinds:
            if kind not in KINDS:
                raise SpecError(f"write: no kind {kind!r}; there are: {', '.join(KINDS)}")
        if len(set(self._kinds)) < len(self._kinds):
            raise SpecError("write: a kind stands twice; n says how many queries of each")
        if self.n < 1 or self.words < 1:
            raise SpecError("write: n and words must be at least 1")
        if self.level not in ("passage", "sentence"):
            raise SpecError(f"write: level is passage or sentence, not {self.level!r}")

    @property
    def _kinds(self) -> list[str]:
        return [kind.strip() for kind in self.kinds.split("+")]

    @property
    def needs(self) -> list[Need]:
        """One text of each kind."""
        return [Need(Write, task=f"query_{kind}") for kind in self._kinds]

    def plan(self, document: Document, world: World, shown: Sequence[Shot]) -> Plan[list[Example]]:
        """All in one round; a document without text gets none and costs no call."""
        wanted = [(kind, sample) for kind in self._kinds for sample in range(self.n)]
        spans = [self._span(document, f"{kind}/{sample}") for kind, sample in wanted]
        if not spans[0].text.strip():
            return []
        examples = tuple(tuple(shot) for shot in shown)
        asks = [
            Write(f"query_{kind}", (("document", span.text), ("examples", examples)), sample=sample)
            for (kind, sample), span in zip(wanted, spans, strict=True)
        ]
        answers = yield from ask_all(asks)
        given = {normalised(shot.query) for shot in shown}
        return [
            _written(self, kind, (span,), answer, given)
            for (kind, _), span, answer in zip(wanted, spans, answers, strict=True)
        ]

    def _span(self, document: Document, draw: str) -> Span:
        whole = beginning(document, self.words)
        if self.level == "passage":
            return whole
        found = [one for one in sentences(whole) if len(one.text.split()) >= _LEAST_WORDS]
        return Random(f"{self.seed}/{document.id}/{draw}").choice(found) if found else whole


@dataclass(frozen=True)
class WriteAcross(Writer):
    """One query for a document and those most like it, found by `by`: of several sources.

    As `multihop` a question that takes all `documents` of them to answer; as `topic` a search for
    what they share, which each of them answers (the topic level of FinCPRG, without its clusters).
    A document that nothing is like gets none.
    """

    name: ClassVar[str] = "across"
    paper: ClassVar[str] = "topic level: FinCPRG"

    _: KW_ONLY
    kind: str = "multihop"
    documents: int = 2
    by: str = "bm25"
    words: int = 128

    def check(self) -> None:
        """Raise `SpecError` for a kind or an index that is none, and numbers that are too small."""
        index_of(self.by)
        if self.kind not in ("multihop", "topic"):
            raise SpecError(f"across: kind is multihop or topic, not {self.kind!r}")
        if self.documents < 2 or self.words < 1:
            raise SpecError("across: documents must be at least 2, words at least 1")

    @property
    def needs(self) -> list[Need]:
        """One text."""
        return [Need(Write, task=f"query_{self.kind}")]

    @property
    def searches(self) -> frozenset[str]:
        """What the other documents are found by."""
        return index_of(self.by)

    def plan(self, document: Document, world: World, shown: Sequence[Shot]) -> Plan[list[Example]]:
        """A search, then one text."""
        own = beginning(document, self.words)
        if not own.text.strip():
            return []
        # Equal texts under another id would be no second source.
        found = yield from world.search(own.text, 2 * self.documents, self.by)
        texts = {normalised(document.contents): document}
        for candidate in found:
            texts.setdefault(normalised(candidate.document.contents), candidate.document)
        group = list(texts.values())[: self.documents]
        if len(group) < self.documents:
            return []
        spans = tuple(beginning(one, self.words) for one in group)
        rows = tuple((span.text,) for span in spans)
        answers = yield from ask_all([Write(f"query_{self.kind}", (("documents", rows),))])
        return [_written(self, self.kind, spans, answers[0], set())]


def beginning(document: Document, words: int) -> Span:
    """The first so many words of a document, as they stand."""
    contents = document.contents
    end = start = 0
    for number, match in enumerate(_WORD.finditer(contents)):
        if number == words:
            break
        start, end = (match.start() if not number else start), match.end()
    return Span(document, start, end)


def sentences(span: Span) -> list[Span]:
    """The sentences of a span, by their full stops and line ends."""
    places = [(match.start(), match.end()) for match in _SENTENCE_END.finditer(span.text)]
    starts = [0, *(end for _, end in places)]
    ends = [*(start for start, _ in places), len(span.text)]
    found = (
        Span(span.document, span.start + start, span.start + end)
        for start, end in zip(starts, ends, strict=True)
    )
    return [one for one in found if one.text.strip()]


def _written(
    writer: Writer,
    kind: str,
    spans: tuple[Span, ...],
    answer: Answer[Written],
    given: Iterable[str],
) -> Example:
    """What came of one text; a query cut off by the token limit is none."""
    query = line(answer.value.text) if answer.value is not None else ""
    note = ""
    if not query:
        note = answer.problem or "nothing was written"
    elif answer.status is Status.TRUNCATED:
        note = "cut off by the token limit"
    elif normalised(query) in given:
        note = "a query that was shown as an example"
    example = Example("", query, kind, spans)
    return example.judged(writer, not note, note=note)
