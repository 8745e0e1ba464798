"""Augmentation by other queries: each is searched, and the rankings are fused."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from llmrank.errors import SpecError
from llmrank.expand.base import (
    Expansion,
    FirstStage,
    NeedsIndex,
    Scored,
    View,
    check_counts,
    check_weights,
    plain,
    usable,
    vectors,
    write,
)
from llmrank.expand.propositions import Column, proposition_views
from llmrank.expand.reading import WORDS, prose, rewrites
from llmrank.expand.scripts import in_script_of
from llmrank.plan import Answer, Plan, Written
from llmrank.types import Query

_NO_OTHER = "no other query came"


def multi_query(
    query: Query, first: FirstStage, *, n: int = 3, constant: float = 60.0
) -> Plan[Expansion]:
    """Up to n reformulations, each searched beside the query, fused by reciprocal rank.

    RAG-Fusion, Rackauckas 2024, arXiv 2402.03367: sum of 1 / (constant + rank). All come as one
    list in one reply: n samples would cost n prompts and often say the same.
    """
    check_weights(constant=constant)
    answers = yield from _list(query, "multi_query", n)
    return (yield from _searched(query, first, answers, n=n, constant=constant))


def subqueries(
    query: Query, first: FirstStage, *, n: int = 3, constant: float = 60.0
) -> Plan[Expansion]:
    """Up to n sub-questions that answer the query step by step, each searched beside the query.

    The decomposition of least-to-most prompting, Zhou et al. 2022, arXiv 2205.10625; the rankings
    are fused by the sum of 1 / (constant + rank), ranks from 1. `constant=0` is MixGR's fusion.
    """
    check_weights(constant=constant)
    answers = yield from _list(query, "subqueries", n)
    return (yield from _searched(query, first, answers, n=n, constant=constant))


def mixgr(
    query: Query, first: FirstStage, *, n: int = 3, depth: int = 200, propositions: bool = False
) -> Plan[Expansion]:
    """Query and sub-queries as views of a document, every score known in each.

    Cai et al. 2024, arXiv 2407.10691. A document's score for the sub-queries is the mean over them.
    Of the union of the `depth` best of each view every document is ranked in both, and the fused
    score is the sum of 1 / rank, ranks from 1. A document without any term of a view has no rank in
    it under BM25. Without an index the views are given as they are.

    With `propositions` the fused views are the paper's three: query and document; the query and the
    best unit of a document; the mean over the sub-queries of the best unit of each. A unit is a
    sentence, where the paper has a model rewrite the whole corpus into propositions before any
    query comes. That takes the texts of the documents, and for dense search their embedding.
    """
    check_counts(depth=depth)
    if propositions and not first.size:
        raise NeedsIndex
    answers = yield from _list(query, "subqueries", n)
    parts, note = rewrites(answers, query, n)
    if not parts:
        return (yield from plain(query, first, answers, note or _NO_OTHER))
    views: list[View] = []
    embedded = None
    if "bm25" in first.kinds:
        mean = tuple((part, 1 / len(parts)) for part in parts)
        views += [View(((query.text, 1.0),)), View(mean)]
    if "dense" in first.kinds:
        embedded = yield from vectors([query.text, *parts], "query")
        if embedded is None:
            return (yield from plain(query, first, answers, "the texts could not be embedded"))
        # The mean of inner products is the inner product with the mean.
        means = embedded[:1], embedded[1:].mean(axis=0, keepdims=True)
        views += [View(vector=vector) for vector in means]
    found = Expansion(query, tuple(views), parts, tuple(answers), constant=0.0, note=note)
    if not first.size:
        return found
    union = _union(found, first, depth)
    columns = [_column(first, view, union) for view in views]
    if propositions:
        texts = query.text, *parts
        columns = columns[::2] + (yield from proposition_views(first, union, texts, embedded))
    return replace(found, ranking=_fused(union, columns))


def clarify(query: Query, first: FirstStage, *, beside: bool = True) -> Plan[Expansion]:
    """A clarifying question with the likeliest answer, then the query rewritten by both.

    After Erbacher et al. 2022, arXiv 2205.15918, where a simulated user answers; two rounds. With
    `beside` the rewritten query is searched beside the query, else in its place.
    """
    asked = yield from write(query, "clarify", 1)
    said = " ".join(prose("\n".join(usable(asked))).split()[: 2 * WORDS])
    if not said:
        return (yield from plain(query, first, asked))
    answers = yield from write(query, "clarified", 1, also=(("clarification", said),))
    found = yield from _searched(query, first, answers, beside=beside)
    return replace(found, answers=(*asked, *answers))


def translate(
    query: Query, first: FirstStage, *, language: str = "English", beside: bool = False
) -> Plan[Expansion]:
    """The query in the language of the documents.

    Query translation, Oard 1998. With `beside` the translation is searched beside the query, which
    pays where encoder or names are shared between the languages, else in its place. A reply without
    a letter of the language's script, where that is known by the language's English name, is none.
    """
    if not language.strip():
        raise SpecError("language is empty")
    answers = yield from write(query, "translate", 1, also=(("language", language.strip()),))
    texts, _ = rewrites(answers, query, 1)
    if not all(in_script_of(language, text) for text in texts):
        note = f"the translation is not written as {language.strip()} is"
        return (yield from plain(query, first, answers, note))
    return (yield from _searched(query, first, answers, beside=beside))


def _list(query: Query, task: str, n: int) -> Plan[list[Answer[Written]]]:
    """One reply that lists n queries."""
    check_counts(n=n)
    return (yield from write(query, task, 1, also=(("n", str(n)),)))


def _searched(
    query: Query,
    first: FirstStage,
    answers: Sequence[Answer[Written]],
    *,
    n: int = 1,
    beside: bool = True,
    constant: float = 60.0,
) -> Plan[Expansion]:
    """The first n queries in the answers, searched beside the query or in its place."""
    texts, note = rewrites(answers, query, n)
    if not texts:
        return (yield from plain(query, first, answers, note or _NO_OTHER))
    views = yield from _searches(first, [query.text, *texts] if beside else texts)
    if not views:
        return (yield from plain(query, first, answers, "the texts could not be embedded"))
    return Expansion(query, views, texts, tuple(answers), constant=constant, note=note)


def _searches(first: FirstStage, texts: Sequence[str]) -> Plan[tuple[View, ...]]:
    """A search of its own for every text, by all that is searched by; none without vectors."""
    views = [View(((text, 1.0),)) for text in texts] if "bm25" in first.kinds else []
    if "dense" in first.kinds:
        embedded = yield from vectors(texts, "query")
        if embedded is None:
            return ()
        views += [View(vector=embedded[i : i + 1]) for i in range(len(texts))]
    return tuple(views)


def _union(found: Expansion, first: FirstStage, depth: int) -> list[str]:
    """What any of the views finds, names falling."""
    depth = max(depth, first.depth)
    lists = [first.search(replace(found, views=(view,)), depth) for view in found.views]
    return sorted({name for hits in lists for name, _ in hits}, reverse=True)


def _column(first: FirstStage, view: View, union: Sequence[str]) -> Column:
    """The score of each document in a view; None for what a search by words does not find."""
    scores = first.score(view, union)
    return [score if score > 0 or view.vector is not None else None for score in scores]


def _fused(union: Sequence[str], columns: Sequence[Column]) -> tuple[Scored, ...]:
    """The documents by the sum of 1 / rank over the columns that rank them."""
    totals: dict[str, list[float]] = {name: [] for name in union}
    for column in columns:
        # The sorts are stable, and the names fall.
        known = [(n, score) for n, score in zip(union, column, strict=True) if score is not None]
        for rank, (name, _) in enumerate(sorted(known, key=_falling), start=1):
            totals[name].append(1 / rank)
    return tuple(sorted(((name, math.fsum(parts)) for name, parts in totals.items()), key=_falling))


def _falling(pair: Scored) -> float:
    return -pair[1]
