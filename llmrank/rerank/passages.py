"""Long documents: their passages are reranked by another method, and the documents by these."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from statistics import fmean

from llmrank.errors import SpecError
from llmrank.plan import Plan
from llmrank.rerank.heard import heard
from llmrank.types import Candidate, Document, Ordering, Query

_WORD = re.compile(r"\S+")


def passages(
    query: Query,
    candidates: Sequence[Candidate],
    *,
    rerank: Callable[[Query, Sequence[Candidate]], Plan[Ordering]],
    words: int = 200,
    overlap: int = 50,
    score: str = "max",
) -> Plan[Ordering]:
    """Documents by their best passage (`max`), by all of them (`mean`) or by the `first` one.

    Every document of more than `words` words is cut into passages of so many, each of which shares
    `overlap` words with the one before and bears the title; `rerank` orders the passages of all
    documents together, in its calls and rounds for so many candidates. A mean is that of the
    scores where `rerank` gives one to every passage and orders by them, else that of the places;
    passages behind those that `rerank` settles share a place. A passage without a score where
    others of its document have one does not count; a failed call does else what `rerank` says. The
    passage that decided is the evidence: none for a document that was left where it stood, or none
    of whose calls gave a usable answer. Dai and Callan 2019 (MaxP, FirstP), arXiv 1905.09217.
    """
    if words < 1 or not 0 <= overlap < words:
        raise SpecError(f"passages needs 0 <= overlap < words, not {overlap, words}")
    if score not in ("max", "mean", "first"):
        raise SpecError(f"passages: score must be max, mean or first, not {score!r}")
    parts: list[Candidate] = []
    spans: list[range] = []
    for candidate in candidates:
        found = split(candidate.document, words, overlap)
        spans.append(range(len(parts), len(parts) + len(found)))
        parts += [replace(candidate, document=document) for document in found]
    ordering, answered = yield from heard(rerank(query, parts))
    return _gathered(parts, spans, ordering, answered, score)


def split(document: Document, words: int, overlap: int) -> list[Document]:
    """The passages of a document, called `id#1` and so on; itself if it has few enough words."""
    found = [match.span() for match in _WORD.finditer(document.text)]
    if len(found) <= words:
        return [document]
    starts = range(0, len(found) - overlap, words - overlap)
    texts = [document.text[found[i][0] : found[i : i + words][-1][1]] for i in starts]
    return [
        replace(document, id=f"{document.id}#{number}", text=text)
        for number, text in enumerate(texts, start=1)
    ]


def _gathered(
    parts: Sequence[Candidate],
    spans: Sequence[range],
    ordering: Ordering,
    answered: set[str],
    score: str,
) -> Ordering:
    """The documents, each of which has one span of the parts, in the order that these have."""
    scores, settled = ordering.scores, ordering.settled
    behind = (settled + len(parts) - 1) / 2
    places = {
        part: place if place < settled else behind for place, part in enumerate(ordering.order)
    }
    # Scores say no more of the best and the first passage than places do, and may be incomplete.
    by_scores = score == "mean" and _explained(ordering)
    worth, given, evidence, ranked = [], [], [], 0
    for span in spans:
        own = span[:1] if score == "first" else [i for i in span if scores[i] is not None] or span
        best = min(own, key=places.__getitem__)
        known = [value for i in own if (value := scores[i]) is not None]
        mean = fmean(known) if known else None
        place = fmean(places[i] for i in own) if score == "mean" else places[best]
        worth.append(mean if by_scores and mean is not None else -place)
        given.append(mean if score == "mean" else scores[best])
        placed = places[best] < settled
        ranked += placed
        told = placed and (scores[best] is not None or parts[best].document.id in answered)
        evidence.append(parts[best].document.text if told and len(span) > 1 else None)
    order = sorted(range(len(spans)), key=lambda i: (-worth[i], i))
    return Ordering(
        tuple(order),
        tuple(given),
        tuple(evidence) if any(evidence) else (),
        None if ordering.ranked is None else ranked,
    )


def _explained(ordering: Ordering) -> bool:
    """Whether every part has a score and they are in the order of their scores."""
    along = [score for part in ordering.order if (score := ordering.scores[part]) is not None]
    return len(along) == len(ordering.order) and all(a >= b for a, b in pairwise(along))
