"""Stages that hold an example against others: near-duplicates, test data, splits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace
from hashlib import sha256
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmrank.errors import InputError, SpecError
from llmrank.plan import Embed, Need, Plan, Vectors, ask
from llmrank.synth.base import Example, Passage, Stage, World
from llmrank.synth.filters import check_share
from llmrank.synth.text import Overlap, normalised
from llmrank.types import Document

_TOGETHER = 256
"""Held-out queries embedded in one request."""


@dataclass(frozen=True)
class Unique(Stage):
    """Of queries that are nearly the same, over the whole set, the first is kept.

    By `words` the Jaccard similarity of word trigrams decides, by `vectors` the cosine.
    """

    name: ClassVar[str] = "unique"

    _: KW_ONLY
    least: float = 0.9
    by: str = "words"

    def check(self) -> None:
        """Raise `SpecError` for a similarity that is none."""
        check_share(self, self.least, above=True)
        if self.by not in ("words", "vectors"):
            raise SpecError(f"unique: by is words or vectors, not {self.by!r}")

    @property
    def needs(self) -> list[Need]:
        """The vector of the query where it is compared by that."""
        return [Need(Embed)] if self.by == "vectors" else []

    def begin(self, world: World) -> Plan[Overlap | Near]:
        """The queries so far."""
        yield from ()
        return Overlap(least=self.least) if self.by == "words" else Near(self.least)

    def plan(self, example: Example, world: World) -> Plan[Vectors | None]:
        """The vector of the query."""
        if self.by == "words":
            return None
        return (yield from _vector(example.query))

    def settle(self, example: Example, found: Any, memory: Any) -> Example:  # noqa: ANN401
        """The value is the similarity to the query that the note names, if it is too near."""
        if self.by == "vectors" and found is None:
            return example.judged(self, False, None, self.least, "could not be embedded")
        what = example.query if self.by == "words" else found
        match = memory.find(what)
        if match is None:
            memory.add(example.id, what)
            return example.judged(self, True, None, self.least)
        return example.judged(self, False, round(match.value, 4), self.least, f"as {match.id}")


@dataclass(frozen=True)
class Guard(Stage):
    """Nothing that is near to test data may be trained on.

    A query is dropped that equals a held-out one, normalised too, or whose word trigrams have a
    Jaccard similarity of `least` or more with its, or whose vector a cosine of `cosine` or more (0:
    not compared); and one whose source is relevant to a held-out query. Other passages beside it
    lose the documents that are.
    """

    name: ClassVar[str] = "guard"

    _: KW_ONLY
    least: float = 0.5
    cosine: float = 0.0

    def check(self) -> None:
        """Raise `SpecError` for a similarity that is none."""
        check_share(self, self.least, above=True)
        check_share(self, self.cosine)

    @property
    def needs(self) -> list[Need]:
        """The vectors of queries where they are compared."""
        return [Need(Embed)] if self.cosine else []

    def begin(self, world: World) -> Plan[tuple[Overlap, Near, frozenset[str]]]:
        """The held-out queries, and the documents relevant to them."""
        if world.held_out is None:
            raise InputError("guard needs test data", remedy="name them with --held-out")
        queries = world.held_out.queries
        overlap = Overlap(((query.id, query.text) for query in queries), least=self.least)
        near = Near(self.cosine)
        for start in range(0, len(queries) if self.cosine else 0, _TOGETHER):
            block = queries[start : start + _TOGETHER]
            answer = yield from ask(Embed(tuple(query.text for query in block)))
            if answer.value is None:
                raise InputError(f"the held-out queries cannot be embedded: {answer.problem}")
            for query, vector in zip(block, answer.value, strict=True):
                near.add(query.id, vector)
        return overlap, near, world.held_out.documents

    def plan(self, example: Example, world: World) -> Plan[Vectors | None]:
        """The vector of the query."""
        if not self.cosine:
            return None
        return (yield from _vector(example.query))

    def settle(self, example: Example, found: Any, memory: Any) -> Example:  # noqa: ANN401
        """The value is the similarity, the note what it is near to."""
        overlap, near, documents = memory
        others = tuple(p for p in example.passages if p.document.id not in documents)
        example = replace(example, passages=others)
        for span in example.sources:
            if span.document.id in documents:
                note = f"{span.document.id} is relevant to a held-out query"
                return example.judged(self, False, None, None, note)
        if match := overlap.find(example.query):
            note = f"as {match.id} ({match.how})"
            return example.judged(self, False, round(match.value, 4), self.least, note)
        if not self.cosine:
            return example.judged(self, True, None, self.least)
        if found is None:
            return example.judged(self, False, None, self.cosine, "could not be embedded")
        if alike := near.find(found):
            return example.judged(self, False, round(alike.value, 4), self.cosine, f"as {alike.id}")
        return example.judged(self, True, None, self.cosine)


@dataclass(frozen=True)
class Split(Stage):
    """Training, development and test examples, by document: no document is in two of them.

    Each document belongs to one split, by a hash of its normalised text and `seed`, so that copies
    are in the same one. An example whose sources belong to several is dropped, and passages of
    other splits are taken away from beside it; one that loses its last negative so is dropped too.
    """

    name: ClassVar[str] = "split"

    _: KW_ONLY
    dev: float = 0.1
    test: float = 0.0
    seed: int = 0

    def check(self) -> None:
        """Raise `SpecError` for shares that are none or leave nothing to train on."""
        if not (self.dev >= 0 and self.test >= 0 and self.dev + self.test < 1):
            raise SpecError("split: dev and test are shares of less than 1 together")

    def settle(self, example: Example, found: Any, memory: Any) -> Example:  # noqa: ANN401
        """The value is the number of passages taken away."""
        splits = {self.of(span.document) for span in example.sources}
        if len(splits) > 1:
            return example.judged(self, False, note="its sources are in several splits")
        (split,) = splits
        kept = tuple(
            passage
            for passage in example.passages
            if not passage.in_corpus or self.of(passage.document) == split
        )
        gone = len(example.passages) - len(kept)
        had, has = _negatives(example.passages), _negatives(kept)
        note = "no negative is in its split" if had and not has else ""
        return replace(example, passages=kept, split=split).judged(self, not note, gone, note=note)

    def of(self, document: Document) -> str:
        """The split of a document."""
        text = normalised(document.contents) or document.id
        digest = sha256(f"{self.seed}/{text}".encode("utf-8", "surrogatepass")).digest()
        draw = int.from_bytes(digest[:8], "big") / 2**64
        if draw < self.dev:
            return "dev"
        return "test" if draw < self.dev + self.test else "train"


def _negatives(passages: Sequence[Passage]) -> int:
    return sum(passage.label == 0 for passage in passages)


class Alike(NamedTuple):
    """The name of a vector and the cosine to it."""

    id: str
    value: float


class Near:
    """Vectors by name, that finds the nearest to another if its cosine is at least `least`."""

    def __init__(self, least: float) -> None:
        self._least = least
        self._names: list[str] = []
        self._rows: NDArray[np.float32] = np.zeros((0, 0), dtype=np.float32)

    def add(self, name: str, vector: Vectors) -> None:
        """Enter one more."""
        known = len(self._names)
        if known == len(self._rows):
            rows = np.zeros((max(256, 2 * known), vector.size), dtype=np.float32)
            rows[:known] = self._rows if known else 0
            self._rows = rows
        self._rows[known] = _unit(vector)
        self._names.append(name)

    def find(self, vector: Vectors) -> Alike | None:
        """The nearest, of equal ones the first."""
        if not self._names:
            return None
        cosines = self._rows[: len(self._names)] @ _unit(vector)
        place = int(cosines.argmax())
        value = float(cosines[place])
        return Alike(self._names[place], value) if value >= self._least else None


def _unit(vector: Vectors) -> Vectors:
    flat = np.asarray(vector, dtype=np.float32).reshape(-1)
    length = float(np.linalg.norm(flat))
    return flat / length if length else flat


def _vector(text: str) -> Plan[Vectors | None]:
    answer = yield from ask(Embed((text,)))
    return None if answer.value is None else answer.value[0]
