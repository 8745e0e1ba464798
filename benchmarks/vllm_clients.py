"""How full clients keep a vLLM server on this machine's CPU: llmrank, vLLM's own benchmark client,
and plain loops over aiohttp and openai, on the same prompts with the same number in flight.

Run: python -m benchmarks.vllm_clients --data FOLDER [--prompts 48] [--rounds 2]

FOLDER holds corpus.jsonl, queries.jsonl and runs/BM25.trec. vLLM runs in .venv-vllm, which
`make test-vllm` sets up. The cache is emptied before every measurement. vLLM's client streams its
answers; it is asked for the same 20 log-probabilities.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
import time
from asyncio.subprocess import PIPE
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

from benchmarks.vllm_serving import NAME, PYTHON, empty_cache, pairs, rendered, serving
from llmrank.backends.gguf import converted_default
from llmrank.backends.openai import OpenAIBackend
from llmrank.plan import Grade
from llmrank.prompts import PromptSet
from llmrank.request import Request
from llmrank.types import Candidate, Document, Ordering, Query, Tally

IN_FLIGHT = (1, 8, 32)
WISH = {"temperature": 0.0, "logprobs": True, "top_logprobs": 20}

Found = Sequence[tuple[Query, Document]]
Client = Callable[[str, Found, int], Coroutine[Any, Any, float]]


async def by_llmrank(url: str, found: Found, flying: int) -> float:
    """Seconds that yes/no over the candidates takes, wrappers and engine included."""
    from llmrank.backends.wrappers import Limited, Meter, Metered, Retrying
    from llmrank.engine import Engine
    from llmrank.rerank import parse

    backend = OpenAIBackend(NAME, base_url=url, dialect="vllm")
    # The ids of the labels are asked for once; that is not what is measured.
    await backend.answer(rendered([Grade(Query("w", "warm"), Document("w", "up"))]))
    engine = Engine(
        Retrying(Limited(Metered(backend, Meter()), flying)), PromptSet(), in_flight=flying
    )
    candidates: dict[Query, list[Candidate]] = {}
    for query, document in found:
        candidates.setdefault(query, []).append(Candidate(document))
    method = parse("yesno")

    def finished(key: str, _ordering: Ordering, tally: Tally) -> None:
        if tally.failures:
            raise RuntimeError(f"{tally.failures} of the answers for query {key} failed")

    started = time.perf_counter()
    try:
        await engine.run([(q.id, method.plan(q, c)) for q, c in candidates.items()], finished)
    finally:
        await backend.close()
    return time.perf_counter() - started


def chats(found: Found) -> list[list[dict[str, str]]]:
    """The same prompts as the messages of chats."""
    requests: list[Request] = rendered([Grade(*pair) for pair in found])
    return [[turn._asdict() for turn in request.messages] for request in requests]


async def by_aiohttp(url: str, found: Found, flying: int) -> float:
    """Seconds of a loop of aiohttp that reads nothing but JSON."""
    import aiohttp

    left = iter(chats(found))

    async def work(session: aiohttp.ClientSession) -> None:
        for messages in left:
            body = {"model": NAME, "messages": messages, "max_tokens": 1, **WISH}
            async with session.post(f"{url}/chat/completions", json=body) as answer:
                answer.raise_for_status()
                json.loads(await answer.text())

    started = time.perf_counter()
    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*(work(session) for _ in range(flying)))
    return time.perf_counter() - started


async def by_openai(url: str, found: Found, flying: int) -> float:
    """Seconds of a loop of the openai package's asynchronous client."""
    import openai

    left = iter(chats(found))

    async def work(client: openai.AsyncOpenAI) -> None:
        for messages in left:
            await client.chat.completions.create(
                model=NAME,
                messages=messages,  # type: ignore[arg-type]
                max_tokens=1,
                temperature=0.0,
                logprobs=True,
                top_logprobs=20,
            )

    started = time.perf_counter()
    async with openai.AsyncOpenAI(base_url=url, api_key="EMPTY") as client:
        await asyncio.gather(*(work(client) for _ in range(flying)))
    return time.perf_counter() - started


async def by_vllm(url: str, found: Found, flying: int) -> float:
    """Seconds by `vllm bench serve`, as it measures them, in vLLM's own environment."""
    given = json.dumps({"url": url, "chats": chats(found), "flying": flying})
    process = await asyncio.create_subprocess_exec(
        *(PYTHON, "-m", "benchmarks.vllm_clients", "--bench-client"),
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
        cwd=Path(__file__).parents[1],
    )
    said, told = await process.communicate(given.encode())
    if process.returncode:
        raise RuntimeError(told.decode()[-2000:])
    return float(said)


def bench_client() -> None:
    """Ask what stands on the standard input by vLLM's benchmark client and write the seconds."""
    from vllm.benchmarks.datasets import SampleRequest
    from vllm.benchmarks.serve import TaskType, benchmark

    given = json.load(sys.stdin)
    asked = [
        SampleRequest(prompt="", prompt_len=1, expected_output_len=1, chat_messages=messages)
        for messages in given["chats"]
    ]
    with contextlib.redirect_stdout(sys.stderr):
        result = asyncio.run(
            benchmark(
                task_type=TaskType.GENERATION,
                endpoint_type="openai-chat",
                api_url=f"{given['url']}/chat/completions",
                base_url=given["url"].removesuffix("/v1"),
                model_id=NAME,
                model_name=NAME,
                tokenizer=None,
                input_requests=asked,
                logprobs=None,
                request_rate=float("inf"),
                burstiness=1.0,
                disable_tqdm=True,
                num_warmups=0,
                profile=False,
                selected_percentile_metrics=[],
                selected_percentiles=[],
                ignore_eos=False,
                goodput_config_dict={},
                max_concurrency=given["flying"],
                lora_modules=None,
                extra_headers=None,
                extra_body=WISH,
                ready_check_timeout_sec=0,
            )
        )
    if result["completed"] != len(asked):
        raise RuntimeError(f"{len(asked) - result['completed']} of the requests failed")
    sys.stdout.write(str(result["duration"]))


CLIENTS: dict[str, Client] = {
    "llmrank": by_llmrank,
    "vllm bench": by_vllm,
    "aiohttp": by_aiohttp,
    "openai": by_openai,
}


def main() -> None:
    """Start a server and let the clients take turns, who goes first alternating."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--data", type=Path)
    options.add_argument("--prompts", type=int, default=48)
    options.add_argument("--rounds", type=int, default=2)
    options.add_argument("--bench-client", action="store_true", help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.bench_client:
        bench_client()
        return
    found = pairs(given.data, given.prompts)
    _show("| round | in flight |", *(f"{name}, prompts/s |" for name in CLIENTS))
    _show("|---:|---:|", *("---:|" for _ in CLIENTS))
    with serving(converted_default()) as url:
        asyncio.run(by_aiohttp(url, found[:8], 8))
        for turn in range(given.rounds):
            for flying in IN_FLIGHT:
                names = list(CLIENTS)
                taken: dict[str, float] = {}
                for name in names[turn % 4 :] + names[: turn % 4]:
                    empty_cache(url)
                    taken[name] = asyncio.run(CLIENTS[name](url, found, flying))
                rates = (f"{len(found) / taken[name]:.2f} |" for name in names)
                _show(f"| {turn + 1} | {flying} |", *rates)


def _show(*cells: str) -> None:
    sys.stdout.write(" ".join(cells) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
