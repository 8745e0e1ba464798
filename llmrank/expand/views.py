"""Augmentation by other queries: each is searched, and the rankings are fused."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from llmrank.errors import SpecError
from llmrank.expand.base import Expansion, FirstStage, Scored, View, plain, usable, vectors, write
from llmrank.expand.reading import WORDS, prose, rewrites
from llmrank.plan import Answer, Plan, Written
from llmrank.types import Query


def multi_query(
    query: Query, first: FirstStage, *, n: int = 3, constant: float = 60.0
) -> Plan[Expansion]:
    """Up to n reformulations, each searched beside the query, fused by reciprocal rank.

    RAG-Fusion, Rackauckas 2024, arXiv 2402.03367: sum of 1 / (constant + rank). All come as one
    list in one reply: n samples would cost n prompts and often say the same.
    """
    _check(n, constant)
    answers = yield from _list(query, "multi_query", n)
    return (yield from _beside(query, first, n, answers, constant))


def subqueries(
    query: Query, first: FirstStage, *, n: int = 3, constant: float = 60.0
) -> Plan[Expansion]:
    """Up to n sub-questions that answer the query step by step, each searched beside the query.

    The decomposition of least-to-most prompting, Zhou et al. 2022, arXiv 2205.10625; the rankings
    are fused by the sum of 1 / (constant + rank), ranks from 1. `constant=0` is MixGR's fusion.
    """
    _check(n, constant)
    answers = yield from _list(query, "subqueries", n)
    return (yield from _beside(query, first, n, answers, constant))


def mixgr(query: Query, first: FirstStage, *, n: int = 3, depth: int = 200) -> Plan[Expansion]:
    """Query and sub-queries as two views of a document, every score known in both.

    Cai et al. 2024, arXiv 2407.10691: a document's score for the sub-queries is the mean over them;
    of the union of the `depth` best of each view every document is ranked in both, and the fused
    score is the sum of 1 / rank, ranks from 1. The views of propositions are left out: the index
    holds documents. A document without any term of a view has no rank in it under BM25. Without an
    index the views are given as they are.
    """
    _check(n, 0.0)
    if depth < 1:
        raise SpecError("depth must be at least 1")
    answers = yield from _list(query, "subqueries", n)
    parts, note = rewrites(answers, query, n)
    if not parts:
        return (yield from plain(query, first, answers, note or "no usable text"))
    views: list[View] = []
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
    return replace(found, ranking=_complete(found, first, depth)) if first.size else found


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
    every = [*asked, *answers]
    return (yield from _rewritten(query, first, answers, every, beside=beside))


def translate(
    query: Query, first: FirstStage, *, language: str = "English", beside: bool = False
) -> Plan[Expansion]:
    """The query in the language of the documents.

    Query translation, Oard 1998. With `beside` the translation is searched beside the query, which
    pays where encoder or names are shared between the languages, else in its place.
    """
    if not language.strip():
        raise SpecError("language is empty")
    answers = yield from write(query, "translate", 1, also=(("language", language.strip()),))
    return (yield from _rewritten(query, first, answers, answers, beside=beside))


def _check(n: int, constant: float) -> None:
    if n < 1:
        raise SpecError("n must be at least 1")
    if not 0 <= constant < math.inf:
        raise SpecError("constant must be 0 or more")


def _list(query: Query, task: str, n: int) -> Plan[list[Answer[Written]]]:
    """One reply that lists n queries."""
    return (yield from write(query, task, 1, also=(("n", str(n)),)))


def _beside(
    query: Query, first: FirstStage, n: int, answers: Sequence[Answer[Written]], constant: float
) -> Plan[Expansion]:
    """The query and what the answers list, each searched."""
    texts, note = rewrites(answers, query, n)
    if not texts:
        return (yield from plain(query, first, answers, note or "no usable text"))
    views = yield from _searches(first, [query.text, *texts])
    if not views:
        return (yield from plain(query, first, answers, "the texts could not be embedded"))
    return Expansion(query, views, texts, tuple(answers), constant=constant, note=note)


def _rewritten(
    query: Query,
    first: FirstStage,
    answers: Sequence[Answer[Written]],
    every: Sequence[Answer[Written]],
    *,
    beside: bool,
) -> Plan[Expansion]:
    """The one query in the answers, searched beside the query or in its place."""
    texts, note = rewrites(answers, query, 1)
    if not texts:
        return (yield from plain(query, first, every, note or "no other query came"))
    views = yield from _searches(first, [query.text, *texts] if beside else texts)
    if not views:
        return (yield from plain(query, first, every, "the texts could not be embedded"))
    return Expansion(query, views, texts, tuple(every), note=note)


def _searches(first: FirstStage, texts: Sequence[str]) -> Plan[tuple[View, ...]]:
    """A search of its own for every text, by all that is searched by; none without vectors."""
    views = [View(((text, 1.0),)) for text in texts] if "bm25" in first.kinds else []
    if "dense" in first.kinds:
        embedded = yield from vectors(texts, "query")
        if embedded is None:
            return ()
        views += [View(vector=embedded[i : i + 1]) for i in range(len(texts))]
    return tuple(views)


def _complete(found: Expansion, first: FirstStage, depth: int) -> tuple[Scored, ...]:
    """The union of what the views find, by the sum of 1 / rank over all of them."""
    singles = [replace(found, views=(view,)) for view in found.views]
    lists = [first.search(single, max(depth, first.depth)) for single in singles]
    union = sorted({name for hits in lists for name, _ in hits}, reverse=True)
    totals: dict[str, list[float]] = {name: [] for name in union}
    for single, hits in zip(singles, lists, strict=True):
        known = {name for name, _ in hits}
        rest = _scores(single, first, [name for name in union if name not in known])
        for rank, (name, _) in enumerate([*hits, *rest], start=1):
            totals[name].append(1 / rank)
    sums = [(name, math.fsum(parts)) for name, parts in totals.items()]
    # The sort is stable, and the names fall.
    return tuple(sorted(sums, key=lambda pair: -pair[1]))


def _scores(single: Expansion, first: FirstStage, names: Sequence[str]) -> list[Scored]:
    """The scores of documents that a search did not reach, best first; `names` fall.

    BM25 finds whatever has a term: searched to the end it gives the scores of them all.
    """
    (view,) = single.views
    if not names:
        return []
    if view.vector is None:
        wanted = set(names)
        return [pair for pair in first.search(single, first.size) if pair[0] in wanted]
    products = first.vectors(names).astype(np.float64) @ view.vector[0].astype(np.float64)
    scored = zip(names, products.astype(np.float32).tolist(), strict=True)
    return sorted(scored, key=lambda pair: -pair[1])
