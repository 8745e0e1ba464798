"""BM25 and dense search against the bare libraries: index time, queries a second, memory.

    python benchmarks/retrieval.py [--documents 100000] [--queries 1000]

Documents have about 60 terms drawn by Zipf's law, queries 2 to 10; vectors are random and of length
1, and no model is asked. Every part runs in a process of its own, on one core, from the same files.
Seconds are CPU time, which other work on the machine hardly changes; memory is the peak of the
process above what it holds with its libraries imported and its input open. faiss is measured where
it is installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

VOCABULARY = 50_000
TERMS = 60  # of a document, on average
DIMENSIONS = 384
K = 100
SLOW = 20  # queries for rank-bm25, which looks at every document
BLOCK = 1024  # queries searched at once by bare numpy
REPEATS = 3
SEED = 7


class Measured(NamedTuple):
    """Seconds to index, queries a second, and the most memory in MiB, indexing and searching."""

    seconds: float
    rate: float
    memory: float


Part = Callable[[Path, int], Measured]


def main() -> None:
    """Make the data, run every part in its own process and print two Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part == "data":
        make_texts(given.data, given.documents, given.queries)
        make_vectors(given.data, given.documents, given.queries)
        return
    if given.part:
        write(json.dumps(PARTS[given.part](given.data, given.documents)))
        return
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        # Not made here: a process starts with the peak of memory of the one that started it.
        make = [sys.executable, __file__, "--part", "data", "--data", folder]
        counts = ["--documents", str(given.documents), "--queries", str(given.queries)]
        subprocess.run([*make, *counts], check=True)
        write(f"{given.documents:,} documents, {given.queries:,} queries, k={K}\n")
        for names in (SPARSE, DENSE):
            found = {name: run(name, data, given.documents) for name in names}
            write(table(found))


def run(name: str, data: Path, documents: int) -> Measured | None:
    """One part in a process of its own; None where its library is not installed."""
    if name.startswith("faiss") and importlib.util.find_spec("faiss") is None:
        return None
    single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    command = [sys.executable, __file__, "--part", name, "--data", str(data)]
    done = subprocess.run(
        [*command, "--documents", str(documents)],
        env={**os.environ, **single},
        stdout=subprocess.PIPE,
        check=True,
    )
    return Measured(*json.loads(done.stdout.splitlines()[-1]))


def table(found: dict[str, Measured | None]) -> str:
    """Figures of the parts, and the ratio of each to ours, the first: above 1 ours is better."""
    ours = next(measured for measured in found.values() if measured is not None)
    lines = [
        "| | index, s | ratio | queries/s | ratio | memory, MiB | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, measured in found.items():
        if measured is None:
            lines.append(f"| {name} | not installed | | | | | |")
            continue
        ratios = (
            measured.seconds / ours.seconds,
            ours.rate / measured.rate,
            measured.memory / ours.memory,
        )
        lines.append(
            f"| {name} | {measured.seconds:.2f} | {ratios[0]:.2f} | {measured.rate:,.1f} "
            f"| {ratios[1]:.2f} | {measured.memory:,.0f} | {ratios[2]:.2f} |"
        )
    return "\n".join(lines) + "\n"


def make_texts(data: Path, documents: int, queries: int) -> None:
    """`corpus.txt` and `queries.txt`, one text a line, of made-up words with Zipf's frequencies."""
    rng = np.random.default_rng(SEED)
    syllables = [a + b for a in "bdfgklmnprstv" for b in "aeiou"]
    words = [
        "".join(syllables[number // 65**place % 65] for place in range(3))
        for number in rng.permutation(65**3)[:VOCABULARY].tolist()
    ]
    chances = 1 / np.arange(1, VOCABULARY + 1)
    chances /= chances.sum()
    for name, lengths in (
        ("corpus.txt", np.maximum(rng.poisson(TERMS, documents), 1)),
        ("queries.txt", rng.integers(2, 11, queries)),
    ):
        drawn = rng.choice(VOCABULARY, lengths.sum(), p=chances)
        with (data / name).open("w") as file:
            for numbers in np.split(drawn, lengths.cumsum()[:-1]):
                file.write(" ".join([words[number] for number in numbers.tolist()]) + "\n")


def make_vectors(data: Path, documents: int, queries: int) -> None:
    """`vectors.npy` and `asked.npy`: random directions."""
    rng = np.random.default_rng(SEED)
    for name, count in (("vectors.npy", documents), ("asked.npy", queries)):
        drawn = rng.standard_normal((count, DIMENSIONS), dtype=np.float32)
        np.save(data / name, drawn / np.linalg.norm(drawn, axis=1, keepdims=True))


def measured(index: Callable[[], Any], search: Callable[[Any], int], before: float) -> Measured:
    """Index once, search several times and keep the fastest; `search` gives how many queries."""
    started = time.process_time()
    built = index()
    indexing = time.process_time() - started
    rates = []
    for _ in range(REPEATS):
        started = time.process_time()
        count = search(built)
        rates.append(count / (time.process_time() - started))
    return Measured(indexing, max(rates), peak() - before)


def peak() -> float:
    """The most memory this process has held so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def lines(path: Path) -> Iterator[str]:
    """The lines of a file, read one by one."""
    with path.open() as file:
        for line in file:
            yield line.rstrip("\n")


def our_bm25(data: Path, _documents: int) -> Measured:
    """Our index, built from a stream of documents, saved and opened, with Lucene's analysis."""
    from llmrank.retrieve import BM25Index
    from llmrank.types import Document

    asked = list(lines(data / "queries.txt"))

    def index() -> BM25Index:
        documents = (Document(str(i), text) for i, text in enumerate(lines(data / "corpus.txt")))
        BM25Index.build(documents).save(data / "bm25")
        return BM25Index.load(data / "bm25")

    def search(built: BM25Index) -> int:
        return len(built.search_all(asked, K))

    return measured(index, search, peak())


def bare_bm25s(data: Path, _documents: int) -> Measured:
    """bm25s with its own tokenizer, English stop words and a Porter stemmer, saved and opened."""
    import bm25s  # type: ignore[import-untyped, unused-ignore]
    import Stemmer  # type: ignore[import-untyped, import-not-found, unused-ignore]

    asked = list(lines(data / "queries.txt"))
    stemmer = Stemmer.Stemmer("porter")

    def tokenized(texts: Sequence[str], ids: bool) -> Any:  # noqa: ANN401
        return bm25s.tokenize(
            texts, stopwords="en", stemmer=stemmer, show_progress=False, return_ids=ids
        )

    def index() -> Any:  # noqa: ANN401
        engine = bm25s.BM25(k1=0.9, b=0.4, method="lucene", backend="numpy")
        engine.index(tokenized(list(lines(data / "corpus.txt")), True), show_progress=False)
        engine.save(str(data / "bm25s"))
        return bm25s.BM25.load(str(data / "bm25s"), mmap=True)

    def search(built: Any) -> int:  # noqa: ANN401
        found = built.retrieve(tokenized(asked, False), k=K, show_progress=False)
        return len(found.documents)

    return measured(index, search, peak())


def rank_bm25(data: Path, _documents: int) -> Measured:
    """rank-bm25 with the words between the blanks: no index on disk, every document scored."""
    from rank_bm25 import BM25Okapi  # type: ignore[import-untyped, unused-ignore]

    asked = list(lines(data / "queries.txt"))[:SLOW]

    def index() -> Any:  # noqa: ANN401
        return BM25Okapi([text.split() for text in lines(data / "corpus.txt")], k1=0.9, b=0.4)

    def search(built: Any) -> int:  # noqa: ANN401
        for text in asked:
            scores = built.get_scores(text.split())
            best = np.argpartition(scores, -K)[-K:]
            best[np.argsort(-scores[best])].tolist()
        return len(asked)

    return measured(index, search, peak())


def our_dense(data: Path, documents: int) -> Measured:
    """Our index, built in batches from vectors as a model would give them, and opened."""
    from llmrank.retrieve import DenseIndex
    from llmrank.types import Document

    vectors = np.load(data / "vectors.npy", mmap_mode="r")
    asked = np.load(data / "asked.npy")

    def index() -> DenseIndex:
        return DenseIndex.build_in(
            data / "dense",
            (Document(str(i), str(i)) for i in range(documents)),
            lambda texts: vectors[int(texts[0]) : int(texts[-1]) + 1],
            model="none",
        )

    def search(built: DenseIndex) -> int:
        return len(built.search(asked, K, model="none"))

    return measured(index, search, peak())


def bare_numpy(data: Path, documents: int) -> Measured:
    """The vectors of all batches saved as one array; a matrix product a block of queries."""
    ids = [str(i) for i in range(documents)]
    vectors = np.load(data / "vectors.npy", mmap_mode="r")
    asked = np.load(data / "asked.npy")

    def index() -> Any:  # noqa: ANN401
        batches = [np.array(vectors[start : start + 64]) for start in range(0, documents, 64)]
        np.save(data / "saved.npy", np.concatenate(batches))
        return np.load(data / "saved.npy", mmap_mode="r")

    def search(built: Any) -> int:  # noqa: ANN401
        found = []
        for start in range(0, len(asked), BLOCK):
            for scores in asked[start : start + BLOCK] @ built.T:
                best = np.argpartition(scores, -K)[-K:]
                best = best[np.argsort(-scores[best])]
                names = (ids[place] for place in best.tolist())
                found.append(list(zip(names, scores[best].tolist(), strict=True)))
        return len(found)

    return measured(index, search, peak())


def faiss_flat(data: Path, _documents: int) -> Measured:
    """faiss IndexFlatIP, exact; equal scores stand in any order."""
    return _faiss(data, _documents, "Flat")


def faiss_hnsw(data: Path, _documents: int) -> Measured:
    """faiss HNSW with 32 links, which misses some documents."""
    return _faiss(data, _documents, "HNSW32")


def _faiss(data: Path, documents: int, kind: str) -> Measured:
    import faiss  # type: ignore[import-untyped, import-not-found, unused-ignore]

    faiss.omp_set_num_threads(1)
    ids = [str(i) for i in range(documents)]
    vectors = np.load(data / "vectors.npy", mmap_mode="r")
    asked = np.load(data / "asked.npy")

    def index() -> Any:  # noqa: ANN401
        built = faiss.index_factory(DIMENSIONS, kind, faiss.METRIC_INNER_PRODUCT)
        for start in range(0, len(vectors), 4096):
            built.add(np.ascontiguousarray(vectors[start : start + 4096]))
        return built

    def search(built: Any) -> int:  # noqa: ANN401
        scores, places = built.search(asked, K)
        found = [
            [(ids[place], score) for place, score in zip(*pair, strict=True)]
            for pair in zip(places.tolist(), scores.tolist(), strict=True)
        ]
        return len(found)

    return measured(index, search, peak())


SPARSE: dict[str, Part] = {"llmrank BM25": our_bm25, "bm25s": bare_bm25s, "rank-bm25": rank_bm25}
DENSE: dict[str, Part] = {
    "llmrank dense": our_dense,
    "numpy": bare_numpy,
    "faiss IndexFlatIP": faiss_flat,
}
# Measured only when asked for by its name: it takes minutes to index.
PARTS = {**SPARSE, **DENSE, "faiss HNSW": faiss_hnsw}


def write(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
