"""A scripted server on the loopback interface, for tests of everything that speaks HTTP."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from aiohttp import web

Body = Mapping[str, Any]
Behaviour = Callable[[web.Request, Body], Awaitable[web.StreamResponse]]


class Received(NamedTuple):
    """One request as it arrived."""

    path: str
    body: Body
    headers: Mapping[str, str]


class Server:
    """Answers each path with its behaviours in turn, the last one again and again; else 404."""

    def __init__(self) -> None:
        self.received: list[Received] = []
        self.url = ""
        self._scripts: dict[str, list[Behaviour]] = {}

    def script(self, path: str, *behaviours: Behaviour) -> None:
        """What to do on a path below /v1; a path with two slashes at its start is taken whole."""
        whole = path[1:] if path.startswith("//") else f"/v1{path}"
        self._scripts[whole] = list(behaviours)

    def bodies(self, path: str) -> list[Body]:
        """What was posted to a path below /v1."""
        return [request.body for request in self.received if request.path == f"/v1{path}"]

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Note the request and do what the script says."""
        text = await request.text()
        body = json.loads(text) if text else {}
        self.received.append(Received(request.path, body, dict(request.headers)))
        script = self._scripts.get(request.path)
        if not script:
            return web.json_response({"detail": "Not Found"}, status=404)
        return await (script.pop(0) if len(script) > 1 else script[0])(request, body)


@contextmanager
def serve() -> Iterator[Server]:
    """A server in a thread of its own, on a free port."""
    server = Server()
    loop = asyncio.new_event_loop()

    async def start() -> web.ServerRunner:
        runner = web.ServerRunner(web.Server(server.handle), shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        server.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        return runner

    async def stop() -> None:
        await runner.cleanup()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    runner = loop.run_until_complete(start())
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        asyncio.run_coroutine_threadsafe(stop(), loop).result(timeout=5)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(timeout=5)
        loop.close()


def sends(
    data: object, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> Behaviour:
    """Answer with JSON; Python's NaN goes out as NaN."""

    async def behave(_request: web.Request, _body: Body) -> web.StreamResponse:
        return web.json_response(data, status=status, headers=headers)

    return behave


def refuses(
    status: int, message: str, *, code: str | None = None, headers: Mapping[str, str] | None = None
) -> Behaviour:
    """Answer with an error in OpenAI's form."""
    error = {"message": message, "type": "error", "param": None, "code": code}
    return sends({"error": error}, status=status, headers=headers)


def sends_html(text: str = "<html>Bad gateway</html>") -> Behaviour:
    """Answer 200 with a page, as a proxy may."""

    async def behave(_request: web.Request, _body: Body) -> web.StreamResponse:
        return web.Response(text=text, content_type="text/html")

    return behave


def breaks_off() -> Behaviour:
    """Send the head and half of the body, then reset the connection."""

    async def behave(request: web.Request, _body: Body) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "application/json"})
        response.content_length = 1000
        await response.prepare(request)
        await response.write(b'{"choices": [')
        if request.transport is not None:
            request.transport.abort()
        return response

    return behave


def waits(seconds: float, then: Behaviour) -> Behaviour:
    """Be slow."""

    async def behave(request: web.Request, body: Body) -> web.StreamResponse:
        await asyncio.sleep(seconds)
        return await then(request, body)

    return behave


def chat(
    content: str | None = "Yes",
    *,
    finish: str = "stop",
    top: Mapping[str, float | None] | None = None,
    **more: object,
) -> dict[str, Any]:
    """A chat completion; `top` are the log-probabilities of the first token's alternatives."""
    logprobs = None
    if top is not None:
        listed = [{"token": token, "logprob": value, "bytes": None} for token, value in top.items()]
        logprobs = {"content": [{"token": content, "logprob": -0.1, "top_logprobs": listed}]}
    message = {"role": "assistant", "content": content, **more}
    choice = {"index": 0, "message": message, "logprobs": logprobs, "finish_reason": finish}
    return {"model": "served", "choices": [choice], "usage": USAGE}


def completion(
    text: str = " yes", *, logprobs: object = None, finish: str = "stop", **more: object
) -> dict[str, Any]:
    """A plain completion; `more` goes into its choice."""
    choice = {"index": 0, "text": text, "logprobs": logprobs, "finish_reason": finish, **more}
    return {"model": "served", "choices": [choice], "usage": USAGE}


USAGE: Mapping[str, Any] = {
    "prompt_tokens": 30,
    "completion_tokens": 2,
    "total_tokens": 32,
    "prompt_tokens_details": {"cached_tokens": 16},
    "completion_tokens_details": {"reasoning_tokens": 1},
}


def echoes(
    tokens: list[str], logprobs: list[float | None], *, offsets: list[int] | None = None
) -> Behaviour:
    """Answer an echo request with these tokens, as vLLM does."""
    starts = [sum(map(len, tokens[:i])) for i in range(len(tokens))]
    found = {"tokens": tokens, "token_logprobs": logprobs, "text_offset": offsets or starts}

    async def behave(_request: web.Request, body: Body) -> web.StreamResponse:
        return web.json_response(completion(body["prompt"], logprobs={**found, "top_logprobs": []}))

    return behave
