"""A search engine of the user's own, as a function."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from llmrank.errors import InputError
from llmrank.retrieve._folder import Scored, best_first, check_depth
from llmrank.types import Query

Engine = Callable[[Sequence[str], int], Sequence[Sequence[Scored]]]
"""From texts of queries and a depth to a list of (id, score) for each text."""


def ask_engine(engine: Engine, queries: Sequence[str | Query], k: int) -> list[list[Scored]]:
    """The k best documents by an engine for each query: score falling, then id falling.

    InputError unless it gives one list for each query, with ids that are texts and differ, and
    scores that are finite numbers. What it gives beyond k is left out.
    """
    check_depth(k)
    texts = [query.text if isinstance(query, Query) else query for query in queries]
    found = _listed(engine(texts, k), "the engine") if texts else []
    if len(found) != len(texts):
        raise InputError(f"the engine gave {len(found)} lists for {len(texts)} queries")
    return [
        best_first(_checked(hits, query))[:k] for query, hits in zip(queries, found, strict=True)
    ]


def _listed(given: object, who: str) -> list[Any]:
    if not isinstance(given, Iterable):
        raise InputError(f"{who} gave {given!r} where a list was due")
    return list(given)


def _checked(hits: object, query: str | Query) -> list[Scored]:
    name = query.id if isinstance(query, Query) else query
    seen: set[str] = set()
    checked: list[Scored] = []
    for hit in _listed(hits, f"query {name!r}: the engine"):
        try:
            document, given = hit
            score = float(given)
        except (TypeError, ValueError) as error:
            message = f"query {name!r}: the engine gave {hit!r} where (id, score) was due"
            raise InputError(message) from error
        if not isinstance(document, str):
            message = f"query {name!r}: the engine gave the id {document!r}, which is not a text"
            raise InputError(message)
        if not math.isfinite(score):
            raise InputError(f"query {name!r}: the engine gave {document!r} the score {score}")
        if document in seen:
            raise InputError(f"query {name!r}: the engine gave the document {document!r} twice")
        seen.add(document)
        checked.append((document, score))
    return checked
