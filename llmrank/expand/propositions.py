"""Scores of texts for the sentences of documents, as MixGR's views of propositions take them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from llmrank.expand.base import FirstStage
from llmrank.expand.reading import sentences
from llmrank.plan import Embed, Plan, Vectors, ask_all

Column = list[float | None]
"""A score for every document, None for one without a rank."""

_K1, _B = 0.9, 0.4


def proposition_views(
    first: FirstStage, names: Sequence[str], texts: Sequence[str], vectors: Vectors | None
) -> Plan[list[Column]]:
    """Two columns for each way of searching, by what the sentences of the documents score.

    The one has the best sentence's score for the first of the texts, the other the mean over the
    rest of the texts of their best sentence's. `vectors` are those of the texts, shape
    (len(texts), dimensions), where dense search has a say; the sentences of a document are embedded
    by one ask, so that a journal has them for the next query too. A document that cannot be
    embedded, or whose sentences have no term of the texts, has no rank.
    """
    units = [sentences(first.document(name).contents) for name in names]
    columns: list[Column] = []
    if "bm25" in first.kinds:
        tables = _lexical(first, units, texts)
        # As in a search by words, what scores 0 is not found.
        columns += [[value or None for value in column] for column in _columns(tables)]
    if vectors is not None:
        columns += _columns((yield from _dense(units, vectors)))
    return columns


def _columns(tables: Sequence[NDArray[np.float64] | None]) -> list[Column]:
    """The two columns of tables of shape (texts, sentences), one for each document."""
    best = [None if table is None else table.max(axis=1) for table in tables]
    return [
        [None if row is None else float(row[0]) for row in best],
        [None if row is None else float(row[1:].mean()) for row in best],
    ]


def _dense(
    units: Sequence[Sequence[str]], vectors: Vectors
) -> Plan[list[NDArray[np.float64] | None]]:
    asks = [Embed(tuple(rows), role="document") for rows in units if rows]
    found = iter((yield from ask_all(asks)))
    tables: list[NDArray[np.float64] | None] = []
    for rows in units:
        value = next(found).value if rows else None
        tables.append(None if value is None else vectors.astype(np.float64) @ value.T)
    return tables


def _lexical(
    first: FirstStage, units: Sequence[Sequence[str]], texts: Sequence[str]
) -> list[NDArray[np.float64] | None]:
    """BM25 of sentences: the documents' idf, and lengths over the mean of these sentences'."""
    asked = [Counter(first.analyze(text)) for text in texts]
    idf = {term: _idf(first, term) for term in {term for terms in asked for term in terms}}
    counted = [[Counter(first.analyze(unit)) for unit in rows] for rows in units]
    mean = fmean([unit.total() for rows in counted for unit in rows] or [0]) or 1.0
    return [
        np.array([[_bm25(terms, unit, idf, mean) for unit in rows] for terms in asked])
        if rows
        else None
        for rows in counted
    ]


def _idf(first: FirstStage, term: str) -> float:
    frequency = first.frequency(term)
    return math.log1p((first.size - frequency + 0.5) / (frequency + 0.5))


def _bm25(terms: Counter[str], unit: Counter[str], idf: Mapping[str, float], mean: float) -> float:
    norm = _K1 * (1 - _B + _B * unit.total() / mean)
    return math.fsum(
        weight * idf[term] * unit[term] / (unit[term] + norm)
        for term, weight in terms.items()
        if term in unit
    )
