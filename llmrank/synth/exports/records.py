"""One line of `examples.jsonl`, read as far as an export needs it."""

from __future__ import annotations

import json
from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

TRAIN = "train"
"""The split of an example whose recipe made none."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True)


class Listed(_Record):
    """A passage beside a query: `text` only where no corpus has it.

    `label` is a grade: 0 for a negative, 1 or more for a positive, None where nothing is known.
    """

    document: str
    label: int | None = Field(default=None, ge=0)
    scores: Mapping[str, FiniteFloat] = Field(default_factory=dict)
    text: str | None = None


class Shown(_Record):
    """Characters `start` to `end` of title and text of a document, which the writer was shown."""

    document: str
    start: int = Field(ge=0)
    end: int = Field(ge=0)


class Judgement(_Record):
    """What a stage said of the example."""

    stage: str
    passed: bool


class Line(_Record):
    """An example: its query, whether it was kept, and the passages beside it."""

    id: str = Field(alias="_id", min_length=1)
    query: str
    kept: bool
    kind: str = ""
    split: str = ""
    sources: tuple[Shown, ...] = ()
    passages: tuple[Listed, ...] = ()
    verdicts: tuple[Judgement, ...] = ()

    @property
    def part(self) -> str:
        """The split it belongs to."""
        return self.split or TRAIN

    @property
    def written_for(self) -> tuple[str, ...]:
        """The ids of the documents that the query was written for."""
        return tuple(source.document for source in self.sources)


def read(text: str) -> Line:
    """An example from its JSON; a ValueError says what is wrong."""
    # Pydantic's own reader refuses a whole line for half a character in one of its texts.
    content = json.loads(text)
    if not isinstance(content, dict):
        raise ValueError("it is not a JSON object")
    try:
        line = Line.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(f"{place}: {first['msg']}" if place else first["msg"]) from None
    ids = [passage.document for passage in line.passages]
    if len(set(ids)) < len(ids):
        twice = next(name for name in ids if ids.count(name) > 1)
        raise ValueError(f"example {line.id!r} has the passage {twice!r} twice")
    return line
