"""BM25: an index for a corpus, and scores for a handful of passages.

Lucene's formula, unless another variant is asked for:

    score(q, d) = sum over the terms t of q:  weight(t) * idf(t) * tf / (tf + k1 * (1 - b + b * l))
    idf(t) = ln(1 + (N - df + 0.5) / (df + 0.5)),  l = length of d / mean length

Lengths are exact; Lucene itself rounds them to one byte, which moves scores a little (nDCG@10 on
SciFact: .678 here, .679 there).
Source: Kamphuis et al., "Which BM25 do you mean?" (ECIR 2020), and the bm25s library.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import llmrank.retrieve._folder as _folder
from llmrank.errors import InputError
from llmrank.retrieve._folder import Scored
from llmrank.retrieve.analysis import analyzer_named
from llmrank.types import Document

K1 = 0.9
B = 0.4
VARIANTS = ("lucene", "robertson", "atire", "bm25l", "bm25+")
"""Which BM25, in the names and the formulas of bm25s.

What the last two give to every document alike for a term that it lacks is left out.
"""

DELTAS = {"bm25l": 0.5, "bm25+": 0.5}
"""The variants that have a delta, and what it is where none is given, as in bm25s."""

_KIND = "bm25"
_FORMAT = 2
_BLOCK = 4096  # documents whose terms are counted at one time


@dataclass(frozen=True, slots=True)
class BM25:
    """Which BM25; what is None is as an existing index has it, and in a new one the default."""

    analyzer: str | None = None
    variant: str | None = None
    k1: float | None = None
    b: float | None = None
    delta: float | None = None

    @property
    def given(self) -> dict[str, Any]:
        """What is not None, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def check(self, index: BM25Index, folder: Path | None = None) -> None:
        """InputError where an index, opened from that folder, was built otherwise."""
        for name, value in self.given.items():
            if (found := getattr(index, name)) != value:
                told = "no delta" if found is None else f"the {name} {found!r}"
                remedy = "leave that option out, or build another index"
                raise InputError(f"the index has {told}, not {value!r}", path=folder, remedy=remedy)


class _Postings(NamedTuple):
    """Term i is in `documents[offsets[i]:offsets[i + 1]]`, its `weights` at the same places."""

    documents: NDArray[np.int32]
    weights: NDArray[np.float32]
    offsets: NDArray[np.int64]


class _Contents(NamedTuple):
    """Document i has `terms[offsets[i]:offsets[i + 1]]`, each as often as `counts` says there."""

    terms: NDArray[np.int32]
    counts: NDArray[np.int32]
    offsets: NDArray[np.int64]


@dataclass(frozen=True, eq=False, repr=False)
class BM25Index:
    """An inverted index with the weight of every term in every document, and their counts.

    It keeps no texts. `delta` is None where the variant has none.
    """

    ids: tuple[str, ...]
    analyzer: str
    k1: float
    b: float
    variant: str
    delta: float | None
    _terms: Mapping[str, int]
    _postings: _Postings
    _contents: _Contents

    @classmethod
    def build(
        cls,
        documents: Iterable[Document],
        *,
        k1: float = K1,
        b: float = B,
        analyzer: str = "english",
        variant: str = "lucene",
        delta: float | None = None,
    ) -> BM25Index:
        """Index title and text of every document, reading each once.

        InputError if there is no document or no term, an id comes twice, or a parameter is wrong.
        """
        import bm25s  # type: ignore[import-untyped, unused-ignore]

        if not (0 <= k1 < math.inf and 0 <= b <= 1):
            raise InputError(f"k1={k1}, b={b}", remedy="k1 is 0 or more, b between 0 and 1")
        _check_variant(variant)
        delta = _delta(variant, delta)
        analyze = analyzer_named(analyzer)
        ids: list[str] = []
        terms: dict[str, int] = {}
        rows: list[array[int]] = []
        for document in _folder.once_each(documents):
            ids.append(document.id)
            words = analyze(document.contents)
            rows.append(array("i", (terms.setdefault(word, len(terms)) for word in words)))
        if not terms:
            raise InputError("no document of the corpus has a term to index")
        engine = bm25s.BM25(k1=k1, b=b, delta=delta or 0.0, method=variant, backend="numpy")
        engine.index((rows, terms), create_empty_token=False, show_progress=False)
        found = engine.scores
        postings = _Postings(found["indices"], found["data"], found["indptr"])
        contents = _counted(rows, len(terms))
        how = analyzer, float(k1), float(b), variant, delta
        return cls(tuple(ids), *how, terms, postings, contents)

    def save(self, folder: str | Path) -> None:
        """Write the index to a folder, at once or not at all; an index there is replaced.

        InputError if the folder holds something else.
        """

        def fill(new: Path) -> None:
            for name, values in self._postings._asdict().items():
                np.save(new / f"{name}.npy", values, allow_pickle=False)
            for name, values in self._contents._asdict().items():
                np.save(new / f"forward_{name}.npy", values, allow_pickle=False)
            _folder.write_json(new / "terms.json", list(self._terms))

        about = {
            "kind": _KIND,
            "format": _FORMAT,
            "analyzer": self.analyzer,
            "variant": self.variant,
            "k1": self.k1,
            "b": self.b,
            **({} if self.delta is None else {"delta": self.delta}),
        }
        _folder.write(Path(folder), about, self.ids, fill)

    @classmethod
    def load(cls, folder: str | Path) -> BM25Index:
        """Open a saved index, its arrays memory-mapped; InputError if it is not whole."""
        stored = _folder.read(Path(folder), _KIND, _FORMAT)
        analyzer, variant = stored.value("analyzer", str), stored.value("variant", str)
        analyzer_named(analyzer)
        _check_variant(variant)
        terms = {term: number for number, term in enumerate(stored.strings("terms"))}
        postings = _Postings(
            stored.array("documents", np.int32),
            stored.array("weights", np.float32),
            stored.array("offsets", np.int64),
        )
        contents = _Contents(
            stored.array("forward_terms", np.int32),
            stored.array("forward_counts", np.int32),
            stored.array("forward_offsets", np.int64),
        )
        size = len(postings.documents)
        if not (
            len(postings.offsets) == len(terms) + 1
            and len(contents.offsets) == len(stored.ids) + 1
            and postings.offsets[-1] == size == len(postings.weights)
            and contents.offsets[-1] == size == len(contents.terms) == len(contents.counts)
        ):
            raise InputError("the files do not belong together", path=folder)
        k1, b = stored.value("k1", float), stored.value("b", float)
        # Indexes of earlier versions do not name their delta, which was the default.
        given = stored.value("delta", float) if "delta" in stored.manifest else None
        how = analyzer, k1, b, variant, _delta(variant, given)
        return cls(stored.ids, *how, terms, postings, contents)

    def __len__(self) -> int:
        return len(self.ids)

    def frequency(self, term: str) -> int:
        """In how many documents an analysed term is."""
        number = self._terms.get(term)
        if number is None:
            return 0
        start, end = self._postings.offsets[number : number + 2].tolist()
        return int(end - start)

    def counts(self, document_id: str) -> dict[str, int]:
        """How often every analysed term is in a document; InputError for an unknown one."""
        (place,) = _folder.places([document_id], self._numbers)
        start, end = self._contents.offsets[place : place + 2].tolist()
        numbers = self._contents.terms[start:end].tolist()
        counts = self._contents.counts[start:end].tolist()
        return {self._words[number]: n for number, n in zip(numbers, counts, strict=True)}

    def search(self, query: str | Mapping[str, float], k: int) -> list[Scored]:
        """The k best documents with a score above 0: score falling, then id falling.

        A text is analysed, and a term that it repeats counts as often; a mapping gives analysed
        terms with their weights. Scores are summed in float64 and rounded to float32.
        """
        _folder.check_depth(k)
        scores = self._scores(query)
        matched = np.flatnonzero(scores > 0)
        return _folder.top(scores[matched], matched, self.ids, k)

    def search_all(
        self, queries: Iterable[str | Mapping[str, float]], k: int
    ) -> list[list[Scored]]:
        """`search` for each query, in the order of the queries."""
        return [self.search(query, k) for query in queries]

    def score(self, query: str | Mapping[str, float], ids: Sequence[str]) -> list[float]:
        """The scores of these documents, in their order, as `search` gives them.

        0 for a document without any term of the query; InputError for an unknown one.
        """
        found: list[float] = self._scores(query)[_folder.places(ids, self._numbers)].tolist()
        return found

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.ids)}

    @cached_property
    def _words(self) -> list[str]:
        return list(self._terms)

    def _scores(self, query: str | Mapping[str, float]) -> NDArray[np.float32]:
        weights = Counter(analyzer_named(self.analyzer)(query)) if isinstance(query, str) else query
        documents, parts = [], []
        # In the order of the terms' numbers, so that a sum does not depend on the mapping's order.
        for number, weight in sorted(self._known(weights)):
            start, end = self._postings.offsets[number : number + 2].tolist()
            documents.append(self._postings.documents[start:end])
            parts.append(np.multiply(self._postings.weights[start:end], weight, dtype=np.float64))
        if not parts:
            return np.zeros(len(self.ids), dtype=np.float32)
        sums = np.bincount(np.concatenate(documents), np.concatenate(parts), len(self.ids))
        return sums.astype(np.float32)

    def _known(self, weights: Mapping[str, float]) -> Iterable[tuple[int, float]]:
        for term, weight in weights.items():
            if not math.isfinite(weight):
                raise InputError(f"the weight of the term {term!r} is {weight}")
            if term in self._terms:
                yield self._terms[term], weight


def _check_variant(variant: str) -> None:
    if variant not in VARIANTS:
        known = ", ".join(VARIANTS)
        raise InputError(f"there is no BM25 {variant!r}", remedy=f"use one of: {known}")


def _delta(variant: str, given: float | None) -> float | None:
    """The delta of a variant, None where it has none."""
    if given is None:
        return DELTAS.get(variant)
    if variant not in DELTAS:
        raise InputError(f"BM25 {variant!r} has no delta", remedy=f"use {' or '.join(DELTAS)}")
    if not 0 <= given < math.inf:
        raise InputError(f"delta={given}", remedy="delta is 0 or more")
    return float(given)


def _counted(rows: Sequence[array[int]], size: int) -> _Contents:
    """How often each of `size` terms is in every document, from the terms in their order."""
    terms, counts, distinct = [], [], [np.zeros(1, dtype=np.int64)]
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK]
        lengths = np.fromiter(map(len, block), np.int64, len(block))
        words = np.frombuffer(b"".join(block), dtype=np.intc)
        pairs = np.repeat(np.arange(len(block)) * size, lengths) + words
        found, times = np.unique(pairs, return_counts=True)
        documents, numbers = np.divmod(found, size)
        terms.append(numbers.astype(np.int32))
        counts.append(times.astype(np.int32))
        distinct.append(np.bincount(documents, minlength=len(block)))
    offsets = np.cumsum(np.concatenate(distinct), dtype=np.int64)
    return _Contents(np.concatenate(terms), np.concatenate(counts), offsets)


def score_passages(
    query: str, passages: Sequence[str], *, analyzer: str = "english"
) -> list[float]:
    """BM25 scores of a handful of passages, in their order, as an index of just them would give.

    Counts and lengths come from the passages themselves; k1 is 0.9 and b 0.4.
    """
    from rank_bm25 import BM25Okapi  # type: ignore[import-untyped, unused-ignore]

    analyze = analyzer_named(analyzer)
    rows = [analyze(passage) for passage in passages]
    if not any(rows):
        return [0.0] * len(rows)
    engine = BM25Okapi(rows, k1=K1, b=B)
    # Its own idf goes below 0 for frequent terms and is then set to a floor; Lucene's stays above.
    frequencies = Counter(chain.from_iterable(engine.doc_freqs))
    engine.idf = {
        term: math.log1p((len(rows) - found + 0.5) / (found + 0.5))
        for term, found in frequencies.items()
    }
    scores: list[float] = (engine.get_scores(analyze(query)) / (K1 + 1)).tolist()
    return scores
