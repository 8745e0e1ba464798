"""Passages and queries that a model writes beside a query, and that it must confirm.

All of them are extras: negatives that are found train better than written ones (arXiv 2504.21015).
None drops an example, and what the model did not confirm is left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any, ClassVar

from llmrank.errors import SpecError
from llmrank.plan import Answer, Grade, Need, Plan, Write, Written, ask_all
from llmrank.synth.base import QUERY, WRITTEN, Example, Passage, Stage, World
from llmrank.synth.negatives import texts_of, with_sources
from llmrank.synth.text import normalised, printable
from llmrank.types import Document, Query, Status

LEVELS = (3, 2, 1, 0)
"""Grades of written documents: answers fully, answers in passing, on the topic, of no use."""

ANSWERS = 0.5
"""The probability of yes from which a model says that a document of a level answers."""

CONFIRMED = "answers"
"""The name of the score that a written text was confirmed by: the probability that it answers."""

_SENTENCE = re.compile(r"\A.*[.!?…。！？][\"'”’»)\]]*(?=\s|\Z|(?<=[。！？]))", re.DOTALL)
_JUDGEMENT = Need(Grade, labels=("yes", "no"))


@dataclass(frozen=True)
class Harder(Stage):
    """Up to `n` passages written to look like an answer, which a model says they are not.

    The model is shown the query and the first `words` words of what it was written for. A passage
    is kept, with label 0 and the origin `written`, where the probability that it answers the query
    is below `below`; one that was cut off is kept up to the end of its last whole sentence.
    """

    name: ClassVar[str] = "harder"
    paper: ClassVar[str] = "Don't Retrieve, Generate, arXiv 2504.21015"

    _: KW_ONLY
    n: int = 2
    below: float = 0.5
    words: int = 256

    def check(self) -> None:
        """Raise `SpecError` for a probability that is none, and for numbers below 1."""
        _check(self, self.n, self.below, self.words)

    @property
    def needs(self) -> list[Need]:
        """A text and a judgement."""
        return [Need(Write, task="hard_negative"), _JUDGEMENT]

    def plan(self, example: Example, world: World) -> Plan[list[Passage]]:
        """All texts in one round, all judgements in a second one."""
        answers = yield from _samples("hard_negative", example, self.n, self.words)
        documents = _documents(example, _distinct(example, map(_whole, answers)))
        likely = yield from _answering([(example.asked, one) for one in documents])
        return [
            Passage(one, WRITTEN, 0, {CONFIRMED: value})
            for one, value in zip(documents, likely, strict=True)
            if value is not None and value < self.below
        ]

    def settle(self, example: Example, found: Any, memory: Any) -> Example:  # noqa: ANN401
        """The value is the number of passages added."""
        return _with(self, example, found)


@dataclass(frozen=True)
class Unanswered(Stage):
    """Up to `n` queries much like this one that a model says its sources do not answer.

    Each stands beside the query as the text of a passage of the origin `query`: it makes a negative
    pair with each source, but is no passage for the query of the example, so it has no label. The
    probability that a source answers it is below `below`. One that was cut off is none.
    """

    name: ClassVar[str] = "unanswered"
    paper: ClassVar[str] = "DocReRank, arXiv 2505.22584"

    _: KW_ONLY
    n: int = 2
    below: float = 0.5
    words: int = 256

    def check(self) -> None:
        """Raise `SpecError` for a probability that is none, and for numbers below 1."""
        _check(self, self.n, self.below, self.words)

    @property
    def needs(self) -> list[Need]:
        """A text and a judgement."""
        return [Need(Write, task="hard_negative_query"), _JUDGEMENT]

    def plan(self, example: Example, world: World) -> Plan[list[Passage]]:
        """All texts in one round; then every source is judged for each of them."""
        answers = yield from _samples("hard_negative_query", example, self.n, self.words)
        texts = ("" if a.status is Status.TRUNCATED else _text(a) for a in answers)
        queries = _documents(example, _distinct(example, texts))
        sources = list({span.document.id: span.document for span in example.sources}.values())
        pairs = [(Query(one.id, one.text), source) for one in queries for source in sources]
        likely = yield from _answering(pairs)
        found: list[Passage] = []
        for place, one in enumerate(queries):
            own = likely[place * len(sources) : (place + 1) * len(sources)]
            known = [value for value in own if value is not None]
            if len(known) == len(own) and max(known) < self.below:
                found.append(Passage(one, QUERY, None, {CONFIRMED: max(known)}))
        return found

    def settle(self, example: Example, found: Any, memory: Any) -> Example:  # noqa: ANN401
        """The value is the number of queries added."""
        return _with(self, example, found)


@dataclass(frozen=True)
class Levels(Stage):
    """One written passage of each of the grades 3, 2, 1, 0, for losses that use grades.

    A model must say that those of the grades 3 and 2 answer the query and that of the grade 0 does
    not; one of the grade 1 is not asked about. The sources, for which the query was written, and
    other positive passages get the grade 3, and negatives keep the grade 0. Where a trainer knows
    positives and negatives alone, the grade 1, on the topic without an answer, is no positive.
    """

    name: ClassVar[str] = "levels"
    paper: ClassVar[str] = "SyCL, arXiv 2503.23239"

    @property
    def needs(self) -> list[Need]:
        """A text and a judgement."""
        return [Need(Write, task="graded_document"), _JUDGEMENT]

    def plan(self, example: Example, world: World) -> Plan[list[Passage]]:
        """All texts in one round, all judgements in a second one."""
        asks = [
            Write("graded_document", (("query", example.query), ("level", str(level))))
            for level in LEVELS
        ]
        answers = yield from ask_all(asks)
        texts = _distinct(example, map(_whole, answers))
        levels = [level for level, text in zip(LEVELS, texts, strict=True) if text]
        documents = _documents(example, texts)
        asked = [one for one, level in zip(documents, levels, strict=True) if level != 1]
        likely = yield from _answering([(example.asked, one) for one in asked])
        values = {one.id: value for one, value in zip(asked, likely, strict=True)}
        found: list[Passage] = []
        for one, level in zip(documents, levels, strict=True):
            value = values.get(one.id)
            if level == 1 or (value is not None and (value >= ANSWERS) == (level > 1)):
                found.append(Passage(one, WRITTEN, level).scored(CONFIRMED, value))
        return found

    def settle(self, example: Example, found: Any, memory: Any) -> Example:  # noqa: ANN401
        """The value is the number of passages added."""
        example = with_sources(example)
        passages = (replace(p, label=max(LEVELS)) if p.label else p for p in example.passages)
        return _with(self, replace(example, passages=tuple(passages)), found)


def _check(stage: Stage, n: int, below: float, words: int) -> None:
    if n < 1 or words < 1 or not 0 < below <= 1:
        raise SpecError(f"{stage.name}: n and words must be at least 1, below in (0, 1]")


def _samples(task: str, example: Example, n: int, words: int) -> Plan[list[Answer[Written]]]:
    """n texts for the query and the first words of each source."""
    shown = "\n\n".join(" ".join(span.text.split()[:words]) for span in example.sources)
    inputs = (("query", example.query), ("document", shown))
    return (yield from ask_all([Write(task, inputs, sample=i) for i in range(n)]))


def _text(answer: Answer[Written]) -> str:
    return printable(answer.value.text) if answer.value is not None else ""


def _whole(answer: Answer[Written]) -> str:
    """The text of an answer; of one that was cut off its whole sentences."""
    text = _text(answer)
    if answer.status is not Status.TRUNCATED:
        return text
    ended = _SENTENCE.match(text)
    return ended[0] if ended else ""


def _distinct(example: Example, texts: Iterable[str]) -> list[str]:
    """The texts, empty where one stands before it or beside the query already."""
    seen = {"", normalised(example.query)} | texts_of(example)
    found: list[str] = []
    for text in texts:
        found.append("" if normalised(text) in seen else text)
        seen.add(normalised(text))
    return found


def _documents(example: Example, texts: Iterable[str]) -> list[Document]:
    """Documents of the texts that are not empty: their ids go on from those written before."""
    start = f"{example.id}-"
    ids = (p.document.id for p in example.passages if p.document.id.startswith(start))
    ends = (name.removeprefix(start) for name in ids)
    last = max((int(end) for end in ends if end.isdecimal()), default=0)
    named = enumerate(filter(None, texts), start=last + 1)
    return [Document(f"{start}{number}", text) for number, text in named]


def _answering(pairs: Sequence[tuple[Query, Document]]) -> Plan[list[float | None]]:
    """The probability that a document answers a query, None where the model did not say."""
    answers = yield from ask_all([Grade(query, document) for query, document in pairs])
    return [None if a.value is None else a.value.probabilities[0] for a in answers]


def _with(stage: Stage, example: Example, found: Sequence[Passage]) -> Example:
    """With the passages added; the verdict passes and has their number."""
    example = with_sources(example)
    example = replace(example, passages=(*example.passages, *found))
    return example.judged(stage, True, len(found))
