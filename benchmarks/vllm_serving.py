"""What vLLM on this machine's CPU gives llmrank, with the small default model: the ways to label
probabilities and to a query likelihood, and its prefix cache.

Run: python benchmarks/vllm_serving.py --data FOLDER [--prompts 48] [--rounds 2]

FOLDER holds corpus.jsonl, queries.jsonl and runs/BM25.trec. vLLM runs in .venv-vllm, which
`make test-vllm` sets up. The cache is emptied before every measurement. (A file named vllm.py could
not stand here: a script's own folder comes first where modules are looked for.)
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import Any

import llmrank.trec as trec
from llmrank.backends.dialects import CHAT
from llmrank.backends.openai import OpenAIBackend
from llmrank.plan import Ask, Grade, Grades, Likelihood, LogProb, Pick
from llmrank.prompts import PromptSet
from llmrank.request import Backend, Reply, Request
from llmrank.types import Document, Query, Usage

NAME = "default"
PYTHON = Path(__file__).parents[1] / ".venv-vllm" / "bin" / "python"
BLOCK = 32
SETTINGS = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_SERVER_DEV_MODE": "1",
    "HF_HUB_OFFLINE": "1",
}
QUERY_FIRST = """
ask = "grade"
description = "As yesno, the query before the passage"
[labels]
yes = ["Yes"]
no = ["No"]
[[messages]]
role = "user"
text = \"\"\"
Query: {{ query }}

Does the passage answer the query? Reply with one word, Yes or No.

Passage: {{ passage }}\"\"\"
"""


@contextmanager
def serving(model: Path, *options: str, seconds: float = 600.0) -> Iterator[str]:
    """A vLLM server with a model under the name `NAME`; gives its base URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        *(str(PYTHON), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)),
        *("--served-model-name", NAME, "--host", "127.0.0.1", "--port", str(port)),
        *("--max-model-len", "2048", "--enforce-eager", "--gpu-memory-utilization", "0.2"),
        *options,
    ]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, env={**os.environ, **SETTINGS}, stdout=log, stderr=log, start_new_session=True
        )
        try:
            _wait(f"http://127.0.0.1:{port}", process, seconds)
            yield f"http://127.0.0.1:{port}/v1"
        except RuntimeError as error:
            log.seek(0)
            raise RuntimeError(f"{error}: {log.read().decode()[-3000:]}") from None
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait(root: str, process: subprocess.Popen[bytes], seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until and process.poll() is None:
        try:
            urllib.request.urlopen(f"{root}/health", timeout=2).close()
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
        else:
            return
    raise RuntimeError("vLLM did not come up")


def empty_cache(url: str) -> None:
    """Make the server forget every prefix."""
    root = url.removesuffix("/v1")
    urllib.request.urlopen(f"{root}/reset_prefix_cache", data=b"", timeout=30).close()


def cache_counts(url: str) -> tuple[float, float]:
    """Tokens looked up in the prefix cache and found there, as the server counts them."""
    with urllib.request.urlopen(url.removesuffix("/v1") + "/metrics", timeout=30) as page:
        text = page.read().decode()
    found = re.findall(
        r"^vllm:prefix_cache_(queries|hits)_total\{[^}]*\} ([0-9.e+]+)$", text, re.MULTILINE
    )
    totals = {"queries": 0.0, "hits": 0.0}
    for name, value in found:
        totals[name] += float(value)
    return totals["queries"], totals["hits"]


def pairs(data: Path, count: int, depth: int = 8) -> list[tuple[Query, Document]]:
    """Queries with the first passages of their BM25 ranking."""
    documents = {document.id: document for document in trec.read_corpus(data / "corpus.jsonl")}
    queries = {query.id: query for query in trec.read_queries(data / "queries.jsonl")}
    found = (
        (queries[key], documents[document_id])
        for key, hits in trec.read_run(data / "runs" / "BM25.trec", depth)
        for document_id, _ in hits
    )
    return list(islice(found, count))


def rendered(asks: Sequence[Ask[Any]], prompt: Path | None = None) -> list[Request]:
    """Requests as llmrank sends them, with a template of one's own for a grade."""
    prompts = PromptSet({"grade": prompt} if prompt else {})
    return [prompts.render(ask) for ask in asks]


async def answered(backend: Backend, requests: Sequence[Request], flying: int) -> list[Reply]:
    """Replies with so many requests in flight; an error ends it."""
    left, replies = iter(enumerate(requests)), {}

    async def work() -> None:
        for i, request in left:
            (replies[i],) = await backend.answer([request])
            if replies[i].error:
                raise RuntimeError(replies[i].error)

    await asyncio.gather(*(work() for _ in range(flying)))
    return [replies[i] for i in range(len(requests))]


async def _closing(backend: Backend, requests: Sequence[Request], flying: int) -> list[Reply]:
    try:
        return await answered(backend, requests, flying)
    finally:
        await backend.close()


def labels(url: str, found: Sequence[tuple[Query, Document]]) -> Iterator[str]:
    """The probabilities of labels by each way to them, against exact ones by token ids."""
    blocks = [
        Pick(query, tuple(document for _, document in group))
        for query, group in ((q, list(g)) for q, g in groupby(found, key=itemgetter(0)))
        if len(group) > 1
    ]
    asked: Mapping[str, Sequence[Ask[Any]]] = {
        "yes/no": [Grade(*pair) for pair in found],
        "grades 0 to 3": [Grade(*pair, labels=("3", "2", "1", "0")) for pair in found],
        "picks by letter": [replace(pick, by="labels") for pick in blocks],
    }
    yield "| asks | way | answers | unseen | low mass | largest difference | mean |"
    yield "|---|---|---:|---:|---:|---:|---:|"
    for name, items in asked.items():
        exact: list[tuple[float, ...] | None] = []
        for way in ("ids", "top-20", "top-5"):
            backend = OpenAIBackend(NAME, base_url=url, dialect="vllm")
            backend.adopt(replace(backend.learnt, labels={CHAT: way}))
            requests = rendered(items)
            replies = asyncio.run(_closing(backend, requests, 8))
            answers = [PromptSet().parse(*pair) for pair in zip(requests, replies, strict=True)]
            values = [answer.value and answer.value.probabilities for answer in answers]
            exact = exact or values
            wide = [len(request.labels) for request in requests]
            unseen = sum(wide) - sum(
                len(_seen(*pair)) for pair in zip(requests, replies, strict=True)
            )
            apart = [
                max(abs(x - y) for x, y in zip(a, b, strict=True))
                for a, b in zip(exact, values, strict=True)
                if a and b
            ]
            yield (
                f"| {name} | {way} | {len(values)} | {unseen} of {sum(wide)} "
                f"| {values.count(None)} | {max(apart, default=0):.4f} | {_mean(apart):.4f} |"
            )
    texts = rendered(blocks)
    replies = _by(url)(texts)
    picked = [PromptSet().parse(*pair) for pair in zip(texts, replies, strict=True)]
    counts = Counter(answer.status for answer in picked)
    same = sum(
        answer.value is not None and known is not None and known[answer.value.best[0]] == max(known)
        for answer, known in zip(picked, exact, strict=True)
    )
    told = ", ".join(f"{count} {status}" for status, count in counts.items())
    yield f"\nPicks by text: {told}; {same} name the likeliest letter."


def _seen(request: Request, reply: Reply) -> set[str]:
    """The labels of which some form was reported."""
    return {
        label
        for label, forms in request.labels.items()
        if any(form in reply.label_logprobs for form in forms)
    }


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.0


def _by(url: str) -> Callable[[Sequence[Request]], list[Reply]]:
    """What a server replies to requests, eight in flight."""
    return lambda requests: asyncio.run(
        _closing(OpenAIBackend(NAME, base_url=url, dialect="vllm"), requests, 8)
    )


def prefixes(url: str, found: Sequence[tuple[Query, Document]]) -> Iterator[str]:
    """How much of the prompts comes from the cache, by what stands first in them."""
    yield "| prompt | prompt tokens | cached, by usage | cached, by /metrics | prompts/s |"
    yield "|---|---:|---:|---:|---:|"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "query-first.toml"
        path.write_text(QUERY_FIRST)
        for name, prompt in (("passage first (yesno)", None), ("query first", path)):
            requests = rendered([Grade(*pair) for pair in found], prompt)
            empty_cache(url)
            backend = OpenAIBackend(NAME, base_url=url, dialect="vllm")
            before, started = cache_counts(url), time.perf_counter()
            replies = asyncio.run(_closing(backend, requests, 8))
            seconds, after = time.perf_counter() - started, cache_counts(url)
            usage = sum((reply.usage for reply in replies), Usage())
            looked, hit = (b - a for a, b in zip(before, after, strict=True))
            by_usage = usage.cached_tokens / usage.prompt_tokens
            yield (
                f"| {name} | {usage.prompt_tokens} | {by_usage:.1%} | {hit / max(looked, 1):.1%} "
                f"| {len(requests) / seconds:.2f} |"
            )


def likelihoods(url: str, found: Sequence[tuple[Query, Document]], rounds: int) -> Iterator[str]:
    """Likelihoods a second by each way that the server has."""
    requests = rendered([Likelihood(*pair) for pair in found])
    yield "| round | way | likelihoods/s | largest difference from echo |"
    yield "|---:|---|---:|---:|"
    for turn in range(rounds):
        first: list[float] = []
        for way in ("echo", "prompt_logprobs"):
            empty_cache(url)
            backend = OpenAIBackend(NAME, base_url=url, dialect="vllm")
            backend.adopt(replace(backend.learnt, likelihood=way))
            started = time.perf_counter()
            replies = asyncio.run(_closing(backend, requests, 8))
            seconds = time.perf_counter() - started
            values = [reply.logprob or math.nan for reply in replies]
            first = first or values
            apart = max(abs(a - b) for a, b in zip(first, values, strict=True))
            yield f"| {turn + 1} | {way}, 8 in flight | {len(found) / seconds:.2f} | {apart:.3f} |"


def in_process(found: Sequence[tuple[Query, Document]], rounds: int, dtype: str) -> Iterator[str]:
    """The same likelihoods, and yes/no, by vLLM in this process; then against transformers."""
    from llmrank.backends.vllm import VllmBackend
    from llmrank.engine import run_sync

    backend = VllmBackend(context=2048, dtype=dtype)
    asked = scores_of_both_kinds(found)
    run_sync(backend.answer([requests[0] for requests in asked.values()]))
    yield "| round | in process | prompts/s | cached |"
    yield "|---:|---|---:|---:|"
    for turn in range(rounds):
        for name, requests in asked.items():
            backend.forget()
            started = time.perf_counter()
            replies = run_sync(backend.answer(requests))
            seconds = time.perf_counter() - started
            usage = sum((reply.usage for reply in replies), Usage())
            cached = usage.cached_tokens / usage.prompt_tokens
            yield f"| {turn + 1} | {name} | {len(requests) / seconds:.2f} | {cached:.1%} |"
    yield from against_transformers(
        asked, f"in process, {dtype}", lambda requests: run_sync(backend.answer(requests))
    )
    run_sync(backend.close())


def scores_of_both_kinds(found: Sequence[tuple[Query, Document]]) -> dict[str, list[Request]]:
    """The likelihoods and the yes/no grades of the pairs."""
    return {
        "likelihood": rendered([Likelihood(*pair) for pair in found]),
        "yes/no": rendered([Grade(*pair) for pair in found]),
    }


def against_transformers(
    asked: Mapping[str, Sequence[Request]],
    where: str,
    answer: Callable[[Sequence[Request]], list[Reply]],
) -> Iterator[str]:
    """How far answers are from those of transformers in this process, in float32."""
    from llmrank.backends.local import LocalBackend
    from llmrank.engine import run_sync

    yield ""
    yield f"| vLLM {where} against transformers in float32 | largest | mean |"
    yield "|---|---:|---:|"
    local = LocalBackend()
    for name, requests in asked.items():
        there, here = (
            [_value(request, reply) for request, reply in zip(requests, replies, strict=True)]
            for replies in (answer(requests), run_sync(local.answer(requests)))
        )
        apart = [abs(a - b) for a, b in zip(there, here, strict=True)]
        yield f"| {len(requests)} {name} | {max(apart):.5f} | {_mean(apart):.5f} |"


def _value(request: Request, reply: Reply) -> float:
    """The log-probability of a likelihood, the probability of yes of a grade."""
    answer = PromptSet().parse(request, reply)
    if isinstance(answer.value, LogProb):
        return answer.value.total
    if isinstance(answer.value, Grades):
        return answer.value.probabilities[0]
    raise RuntimeError(answer.problem)


def main() -> None:
    """Measure the server, then vLLM in a process of its own environment."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--prompts", type=int, default=48)
    options.add_argument("--rounds", type=int, default=2)
    options.add_argument("--in-process", action="store_true", help="only that part, in this python")
    options.add_argument("--dtype", default="bfloat16", help="of vLLM where it is compared")
    given = options.parse_args()
    found = pairs(given.data, given.prompts)
    if given.in_process:
        _write(in_process(found, given.rounds, given.dtype))
        return
    from llmrank.backends.gguf import converted_default

    extra = ("--block-size", str(BLOCK), "--enable-prompt-tokens-details")
    with serving(converted_default(), *extra) as url:
        _write(labels(url, found))
        _write(prefixes(url, found))
        _write(likelihoods(url, found, given.rounds))
    with serving(converted_default(), "--dtype", given.dtype) as url:
        _write(
            against_transformers(scores_of_both_kinds(found), f"server, {given.dtype}", _by(url))
        )
    subprocess.run([PYTHON, *sys.argv, "--in-process"], check=True)


def _write(lines: Iterator[str]) -> None:
    for line in lines:
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
