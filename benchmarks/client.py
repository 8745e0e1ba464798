"""How many requests a second one process can make, and what each layer of the client costs.

A server in a process of its own answers every chat completion at once, with 20 log-probabilities;
so all that is measured is the client. Run: python benchmarks/client.py [--requests 3000]

With --memory: the memory that 100,000 asks take, in plans that wait to be taken in, in one round,
or all under way at once. No server is asked.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import json
import multiprocessing
import pstats
import random
import resource
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import NamedTuple

from llmrank.request import Reply, Request, Want

IN_FLIGHT = 64
CANDIDATES = 100
MODEL = "bench"


class Measured(NamedTuple):
    """One way of asking: requests a second, and milliseconds of CPU for one request."""

    name: str
    rate: float
    cpu: float


def answer_body() -> bytes:
    """A chat completion with the 20 likeliest first tokens."""
    words = ["Yes", "No", " yes", " no", *(f"word{i}" for i in range(16))]
    top = [
        {"token": word, "logprob": -0.5 - 0.4 * i, "bytes": list(word.encode())}
        for i, word in enumerate(words)
    ]
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": "Yes", "refusal": None},
        "logprobs": {"content": [{**top[0], "top_logprobs": top}], "refusal": None},
        "finish_reason": "stop",
    }
    usage = {"prompt_tokens": 420, "completion_tokens": 1, "total_tokens": 421}
    answer = {"id": "c", "object": "chat.completion", "created": 1, "model": MODEL}
    return json.dumps({**answer, "choices": [choice], "usage": usage}).encode()


async def serve(pipe: Connection) -> None:
    """Answer every request on a free loopback port with the same bytes; tells the port."""
    body = answer_body()
    head = (
        f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    answer = head.encode() + body

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            try:
                request = await reader.readuntil(b"\r\n\r\n")
            except (asyncio.IncompleteReadError, ConnectionError):
                writer.close()
                return
            lengths = [line for line in request.lower().split(b"\r\n") if b"content-length" in line]
            await reader.readexactly(int(lengths[0].partition(b":")[2]) if lengths else 0)
            writer.write(answer)

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    pipe.send(server.sockets[0].getsockname()[1])
    await server.serve_forever()


def _serve(pipe: Connection) -> None:
    asyncio.run(serve(pipe))


@contextmanager
def server() -> Iterator[str]:
    """A server in another process; gives its base URL."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=(there,))
    process.start()
    try:
        yield f"http://127.0.0.1:{here.recv()}/v1"
    finally:
        process.terminate()
        process.join()


def passage(number: int) -> str:
    """About 300 words, different for every number."""
    draw = random.Random(number)
    return " ".join(f"word{draw.randrange(5000)}" for _ in range(300))


def chat(number: int) -> dict[str, object]:
    """The body of one request."""
    messages = [{"role": "user", "content": f"{passage(number)}\nRelevant? Yes or No."}]
    wish = {"logprobs": True, "top_logprobs": 20, "max_tokens": 1, "temperature": 0.0}
    return {"model": MODEL, "messages": messages, **wish}


async def in_flight(total: int, one: Callable[[int], Awaitable[object]]) -> None:
    """Make so many requests, 64 at a time."""
    numbers = iter(range(total))

    async def work() -> None:
        for number in numbers:
            await one(number)

    await asyncio.gather(*(work() for _ in range(IN_FLIGHT)))


async def timed(name: str, total: int, run: Callable[[int], Awaitable[object]]) -> Measured:
    """Run a tenth as a warm-up, then measure."""
    await run(max(IN_FLIGHT, total // 10))
    wall, cpu = time.perf_counter(), time.process_time()
    await run(total)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return Measured(name, total / wall, 1000 * cpu / total)


async def bare_aiohttp(url: str, total: int) -> Measured:
    """aiohttp alone, the answer read as JSON."""
    import aiohttp

    bodies = [chat(i) for i in range(total)]
    async with aiohttp.ClientSession() as session:

        async def one(number: int) -> None:
            async with session.post(f"{url}/chat/completions", json=bodies[number]) as answer:
                json.loads(await answer.text())

        return await timed("aiohttp", total, lambda n: in_flight(n, one))


async def bare_openai(url: str, total: int, *, aio: bool) -> Measured:
    """AsyncOpenAI as its users call it, on either transport."""
    import openai

    bodies = [chat(i) for i in range(total)]
    transport = openai.DefaultAioHttpClient() if aio else None
    client = openai.AsyncOpenAI(base_url=url, api_key="EMPTY", max_retries=0, http_client=transport)
    async with client:

        async def one(number: int) -> None:
            await client.chat.completions.create(**bodies[number])  # type: ignore[call-overload]

        name = f"AsyncOpenAI, {'aiohttp' if aio else 'default'} transport"
        return await timed(name, total, lambda n: in_flight(n, one))


async def backend_alone(url: str, total: int) -> Measured:
    """`OpenAIBackend.answer` with requests made before."""
    from llmrank.backends.openai import OpenAIBackend
    from llmrank.plan import Grade
    from llmrank.prompts import PromptSet
    from llmrank.types import Document, Query

    prompts, query = PromptSet(), Query("q", "what is measured here")
    docs = [Document(str(i), passage(i)) for i in range(total)]
    requests = [prompts.render(Grade(query, doc)) for doc in docs]
    backend = OpenAIBackend(MODEL, base_url=url)

    async def one(number: int) -> None:
        (reply,) = await backend.answer([requests[number]])
        if reply.error:
            raise RuntimeError(reply.error)

    try:
        return await timed("OpenAIBackend.answer", total, lambda n: in_flight(n, one))
    finally:
        await backend.close()


async def engine(url: str, total: int) -> Measured:
    """Yes/no plans over 100 candidates each, through the engine and the wrappers."""
    from llmrank.backends.openai import OpenAIBackend
    from llmrank.backends.wrappers import Limited, Meter, Metered, Retrying
    from llmrank.engine import Engine
    from llmrank.prompts import PromptSet
    from llmrank.rerank import parse
    from llmrank.types import Candidate, Document, Query

    backend = OpenAIBackend(MODEL, base_url=url)
    wrapped = Retrying(Limited(Metered(backend, Meter()), IN_FLIGHT))
    runner = Engine(wrapped, PromptSet(), in_flight=IN_FLIGHT)
    docs = [Candidate(Document(str(i), passage(i))) for i in range(total)]
    method = parse(f"yesno@{CANDIDATES}")

    async def run(requests: int) -> None:
        plans = [
            (start, method.plan(Query(str(start), f"query {start}"), docs[start:][:CANDIDATES]))
            for start in range(0, requests - CANDIDATES + 1, CANDIDATES)
        ]
        await runner.run(plans, lambda _key, _ordering, _tally: None)

    try:
        return await timed("Engine, yesno@100, wrapped", total, run)
    finally:
        await backend.close()


class Held:
    """Answers only when so many requests are under way, or no more have come for a moment."""

    identity = "held"
    wants: frozenset[Want] = frozenset({"labels"})
    batch = 1

    def __init__(self, until: int) -> None:
        self._until, self._under_way = until, 0
        self._full = asyncio.Event()

    async def answer(self, requests: Sequence[Request]) -> list[Reply]:
        """Yes, to each."""
        self._under_way += 1
        if self._under_way >= self._until:
            self._full.set()
        await self._full.wait()
        return [Reply(label_logprobs={"Yes": -0.1, "No": -2.0}) for _ in requests]

    async def close(self) -> None:
        """Nothing to close."""


def resident() -> int:
    """The most memory this process has had so far, in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def memory(plans: int, asks: int, flying: int) -> int:
    """KiB that so many plans with so many asks each add, `flying` requests being under way."""
    from llmrank.backends.wrappers import Limited, Meter, Metered, Retrying
    from llmrank.engine import Engine
    from llmrank.prompts import PromptSet
    from llmrank.rerank import parse
    from llmrank.types import Candidate, Document, Query

    docs = [Candidate(Document(str(i), "a passage of a few words")) for i in range(asks)]
    method = parse(f"yesno@{asks}")

    def run(plans: int, flying: int, docs: Sequence[Candidate]) -> None:
        backend = Retrying(Limited(Metered(Held(flying), Meter()), flying, least=flying))
        work = ((i, method.plan(Query(str(i), f"query {i}"), docs)) for i in range(plans))
        runner = Engine(backend, PromptSet(), in_flight=flying)
        asyncio.run(runner.run(work, lambda _key, _ordering, _tally: None))

    run(1, 1, docs[:10])
    before = resident()
    run(plans, flying, docs)
    return resident() - before


def memory_table() -> str:
    """What 100,000 asks take, each case in a process of its own."""
    cases = {
        "10,000 plans of 10, 32 under way": (10_000, 10, 32),
        "1,000 plans of 100, 32 under way": (1_000, 100, 32),
        "one plan of 100,000 in a round, 32 under way": (1, 100_000, 32),
        "10,000 plans of 10, 10,000 under way": (10_000, 10, 10_000),
        "10,000 plans of 10, 100,000 under way": (10_000, 10, 100_000),
    }
    lines = ["| 100,000 asks | MiB | KiB per 1,000 asks |", "|---|---:|---:|"]
    for name, case in cases.items():
        with multiprocessing.get_context("spawn").Pool(1) as process:
            used = process.apply(memory, case)
        lines.append(f"| {name} | {used / 1024:.1f} | {used / 100:.0f} |")
    return "\n".join(lines) + "\n"


def table(rows: list[Measured]) -> str:
    """The figures as a Markdown table; ratios are to the first row."""
    lines = [
        "| client | requests/s | of aiohttp | CPU ms/request |",
        "|---|---:|---:|---:|",
    ]
    lines += [
        f"| {row.name} | {row.rate:.0f} | {row.rate / rows[0].rate:.2f} | {row.cpu:.2f} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure every way, each in an event loop of its own."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--requests", type=int, default=3000, help="a multiple of 1000")
    options.add_argument("--profile", action="store_true", help="profile the engine's run instead")
    options.add_argument("--memory", action="store_true", help="measure memory instead")
    given = options.parse_args()
    if given.memory:
        sys.stdout.write(memory_table())
        return
    with server() as url:
        if given.profile:
            profile = cProfile.Profile()
            profile.runcall(asyncio.run, engine(url, given.requests))
            pstats.Stats(profile, stream=sys.stdout).sort_stats("tottime").print_stats(45)
            return
        rows = [
            asyncio.run(bare_aiohttp(url, given.requests)),
            asyncio.run(bare_openai(url, given.requests, aio=False)),
            asyncio.run(bare_openai(url, given.requests, aio=True)),
            asyncio.run(backend_alone(url, given.requests)),
            asyncio.run(engine(url, given.requests)),
        ]
    sys.stdout.write(table(rows))


if __name__ == "__main__":
    main()
