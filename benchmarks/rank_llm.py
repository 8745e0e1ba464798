"""Windows a second of rank-llm and of llmrank on vLLM in process, on this machine's CPU.

Run: python -m benchmarks.rank_llm --data FOLDER --packages PACKAGES [--queries 8] [--rounds 3]

FOLDER holds corpus.jsonl, queries.jsonl and runs/BM25.trec. vLLM is that of .venv-vllm, which
`make test-vllm` sets up, and PACKAGES a folder made by

    pip install --no-deps --target PACKAGES rank-llm==0.25.7 dacite ftfy wcwidth python-dotenv \\
        faiss-cpu pandas pytz tzdata python-dateutil six

Both rank 20 BM25 candidates in sliding windows of 9 with stride 5 by the log-probabilities of the
first token's letters, passages cut at 60 words, with an empty cache before every round. rank-llm
0.25.7 does not import with transformers 5 and loads tiktoken's files from the network: its T5
models are left out here, and tokens that it counts for its own report are counted as words.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import llmrank.trec as trec
from benchmarks.vllm_serving import PYTHON, SETTINGS
from llmrank.types import Candidate, Document, Ordering, Query, Tally

WINDOW, STRIDE, DEPTH, WORDS, CONTEXT = 9, 5, 20, 60, 2048
ENGINE = {"enforce_eager": True, "gpu_memory_utilization": 0.2, "max_model_len": CONTEXT}

Ranked = Sequence[tuple[Query, Sequence[Document]]]


def ranked(data: Path, count: int) -> Ranked:
    """The first queries with their BM25 candidates."""
    documents = {document.id: document for document in trec.read_corpus(data / "corpus.jsonl")}
    queries = {query.id: query for query in trec.read_queries(data / "queries.jsonl")}
    found: list[tuple[Query, list[Document]]] = []
    for key, hits in trec.read_run(data / "runs" / "BM25.trec", DEPTH):
        if len(found) < count:
            found.append((queries[key], [documents[name] for name, _ in hits]))
    return found


def by_rank_llm(found: Ranked, rounds: int, model: str, packages: str) -> None:
    """Rounds of rank-llm's listwise reranker."""
    sys.path.insert(0, packages)
    _without_what_is_missing()
    import vllm

    engine = vllm.LLM
    # It leaves no choice of these.
    vllm.LLM = lambda model, max_logprobs, **_: engine(
        model=model, max_logprobs=max_logprobs, **ENGINE
    )
    from rank_llm.data import Candidate as Shown  # type: ignore[import-not-found]
    from rank_llm.data import Query as Asked
    from rank_llm.data import Request
    from rank_llm.rerank.listwise import RankListwiseOSLLM  # type: ignore[import-not-found]

    ranker = RankListwiseOSLLM(
        model=model,
        context_size=CONTEXT,
        device="cpu",
        window_size=WINDOW,
        stride=STRIDE,
        use_logits=True,
        use_alpha=True,
        variable_passages=True,
        batch_size=512,
    )

    def rank(some: Ranked) -> int:
        requests = [
            Request(
                query=Asked(text=query.text, qid=query.id),
                candidates=[
                    Shown(d.id, 1.0 - i / 100, {"contents": " ".join(d.text.split()[:WORDS])})
                    for i, d in enumerate(documents)
                ],
            )
            for query, documents in some
        ]
        options = {"rank_start": 0, "rank_end": DEPTH, "populate_invocations_history": True}
        return sum(
            len(done.invocations_history) for done in ranker.rerank_batch(requests, **options)
        )

    rank(found[:1])
    for _ in range(rounds):
        ranker._vllm_handler._vllm.reset_prefix_cache()
        started = time.perf_counter()
        windows = rank(found)
        _show("rank-llm", windows, time.perf_counter() - started)


def _without_what_is_missing() -> None:
    absent: Any = types.ModuleType("rank_llm.rerank.listwise.rank_fid")
    absent.RankFiDDistill = absent.RankFiDScore = type("Absent", (), {})
    sys.modules[absent.__name__] = absent
    import tiktoken as tokens

    tiktoken: Any = tokens
    words: Any = types.SimpleNamespace(encode=str.split)
    tiktoken.get_encoding = lambda _name: words


def by_llmrank(found: Ranked, rounds: int, model: str) -> None:
    """Rounds of the same windows by llmrank."""
    from llmrank import Session, Settings
    from llmrank.backends import connect
    from llmrank.backends.vllm import VllmBackend
    from llmrank.rerank import parse

    backend = connect(f"vllm-offline:{model},context={CONTEXT},memory=0.2")
    if not isinstance(backend, VllmBackend):
        raise TypeError(backend.identity)
    session = Session(Settings(passage_words=WORDS), model=backend)
    method = parse(f"sliding(window={WINDOW}, stride={STRIDE}, by=labels)@{DEPTH}")

    def rank(some: Ranked) -> int:
        tallies: list[Tally] = []

        def finished(_key: str, _ordering: Ordering, tally: Tally) -> None:
            tallies.append(tally)

        plans = [(q.id, method.plan(q, [Candidate(d) for d in docs])) for q, docs in some]
        session.run_sync(plans, finished)
        if any(tally.failures for tally in tallies):
            raise RuntimeError("some of the answers failed")
        return sum(tally.asks for tally in tallies)

    rank(found[:1])
    for _ in range(rounds):
        backend.forget()
        started = time.perf_counter()
        windows = rank(found)
        _show("llmrank", windows, time.perf_counter() - started)
    session.close()


def _show(name: str, windows: int, seconds: float) -> None:
    sys.stdout.write(f"| {name} | {windows} | {windows / seconds:.2f} |\n")
    sys.stdout.flush()


def main() -> None:
    """Each in a process of its own, as each holds an engine."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--packages", required=True)
    options.add_argument("--queries", type=int, default=8)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--only", choices=("llmrank", "rank-llm"), help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.only is None:
        sys.stdout.write("| | windows | windows/s |\n|---|---:|---:|\n")
        sys.stdout.flush()
        for name in ("llmrank", "rank-llm"):
            command = [str(PYTHON), "-m", "benchmarks.rank_llm", *sys.argv[1:], "--only", name]
            done = subprocess.run(
                command, env={**os.environ, **SETTINGS}, capture_output=True, check=False, text=True
            )
            lines = [line for line in done.stdout.splitlines() if line.startswith("| ")]
            sys.stdout.write(
                "\n".join(lines) + "\n" if not done.returncode else done.stderr[-2000:]
            )
        return
    from llmrank.backends.gguf import converted_default

    found, model = ranked(given.data, given.queries), str(converted_default())
    if given.only == "llmrank":
        by_llmrank(found, given.rounds, model)
    else:
        by_rank_llm(found, given.rounds, model, given.packages)


if __name__ == "__main__":
    main()
