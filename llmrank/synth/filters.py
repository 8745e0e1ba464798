"""Filters for generated queries; each verdict carries the number it was reached by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from llmrank.types import Status

Search = Callable[[str, int], Sequence[tuple[str, float]]]
"""A first stage: query text and k to (document id, score) pairs, best first."""


class Verdict(NamedTuple):
    """What a filter says of a query: the value it measured and the bound it was held against."""

    filter: str
    passed: bool
    value: float | None
    bound: float | None


def complete(status: Status) -> Verdict:
    """A query that the token limit cut off is no query."""
    return Verdict("complete", status is not Status.TRUNCATED, None, None)


def length(query: str, *, words: int = 3) -> Verdict:
    """A query of fewer words says too little to be searched for."""
    count = len(query.split())
    return Verdict("length", count >= words, count, words)


def round_trip(query: str, document_id: str, search: Search, *, k: int = 1) -> Verdict:
    """The document a query was written for must be among the first k that the query finds.

    The consistency filter of Promptagator, arXiv 2209.11755. The value is the document's rank,
    None when it is not among the first 100 or k, whichever is more.
    """
    found = [doc_id for doc_id, _ in search(query, max(k, 100))]
    rank = found.index(document_id) + 1 if document_id in found else None
    return Verdict("round_trip", rank is not None and rank <= k, rank, k)
