"""A language model for tests, on the loopback server: its answers depend on the texts alone."""

from __future__ import annotations

import asyncio
import hashlib
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from aiohttp import web

from tests import servers
from tests.servers import Body, Server

_SEVERAL = re.compile(r"Which (\d+) passages")
WRITTEN = "yeast makes gas in the dough"


def _number(text: str) -> int:
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16)


def answer(body: Body) -> dict[str, Any]:
    """A ranking, letters, a grade or yes or no with probabilities, a text: what the chat asks."""
    text = "\n".join(turn["content"] for turn in body["messages"])
    letters = re.findall(r"^Passage ([A-Z]):", text, re.MULTILINE)
    if body.get("logprobs"):
        scale = re.search(r"from the best to the worst: (.*?)\.", text)
        labels = letters or (scale[1].split(", ") if scale else ["Yes", "No"])
        mass = [_number(label + text) + 1 for label in labels]
        top = {label: math.log(part / sum(mass)) for label, part in zip(labels, mass, strict=True)}
        return servers.chat(labels[0], top=top)
    if letters:
        return servers.chat(
            ", ".join(letters[: int(n[1])] if (n := _SEVERAL.search(text)) else letters[:1])
        )
    if shown := re.findall(r"^\[(\d+)\]", text, re.MULTILINE):
        shown.sort(key=lambda place: _number(place + text))
        return servers.chat(" > ".join(f"[{place}]" for place in shown))
    return servers.chat(WRITTEN)


@contextmanager
def judge(delay: float = 0.0) -> Iterator[Server]:
    """A server with chat, plain completions and embeddings of three dimensions."""

    async def chat(_request: web.Request, body: Body) -> web.StreamResponse:
        await asyncio.sleep(delay)
        return web.json_response(answer(body))

    async def completion(_request: web.Request, _body: Body) -> web.StreamResponse:
        return web.json_response(servers.completion(f" {WRITTEN}"))

    async def embed(_request: web.Request, body: Body) -> web.StreamResponse:
        vectors = [[_number(f"{i}{text}") / 2**32 for i in range(3)] for text in body["input"]]
        data = [{"index": i, "embedding": vector} for i, vector in enumerate(vectors)]
        return web.json_response({"model": "served", "data": data, "usage": servers.USAGE})

    async def models(_request: web.Request, _body: Body) -> web.StreamResponse:
        only = {"id": "m", "object": "model", "created": 0, "owned_by": "test"}
        return web.json_response({"object": "list", "data": [only]})

    with servers.serve() as server:
        server.script("/chat/completions", chat)
        server.script("/completions", completion)
        server.script("/embeddings", embed)
        server.script("/models", models)
        yield server


def asked(server: Server) -> int:
    """How many requests of a model the server has had, those that only ask what it is left out."""
    return sum(bool(request.body) for request in server.received)
