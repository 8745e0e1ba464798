"""A scripted server on the loopback interface, for tests of everything that speaks HTTP."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from aiohttp import web

Body = Mapping[str, Any]
Behaviour = Callable[[web.Request, Body], Awaitable[web.StreamResponse]]


MODEL = "m"


class Received(NamedTuple):
    """One request as it arrived."""

    path: str
    body: Body
    headers: Mapping[str, str]
    query: str


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

    def forget(self) -> None:
        """Drop every script and all that was received."""
        self._scripts.clear()
        self.received.clear()

    def bodies(self, path: str) -> list[Body]:
        """What was posted to a path below /v1."""
        return [request.body for request in self.received if request.path == f"/v1{path}"]

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Note the request and do what the script says."""
        text = await request.text()
        body = json.loads(text) if text else {}
        self.received.append(
            Received(request.path, body, dict(request.headers), request.query_string)
        )
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


def drips(seconds: float) -> Behaviour:
    """Send a body of spaces, a byte at a time: a connection that is never idle and never done."""

    async def behave(request: web.Request, _body: Body) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "application/json"})
        await response.prepare(request)
        while True:
            await response.write(b" ")
            await asyncio.sleep(seconds)

    return behave


def sends_text(text: str) -> Behaviour:
    """Answer 200 with a text that says it is JSON."""

    async def behave(_request: web.Request, _body: Body) -> web.StreamResponse:
        return web.Response(text=text, content_type="application/json")

    return behave


@dataclass(frozen=True)
class Speaker:
    """One kind of server as its documentation describes it; `MODEL` is all that it serves.

    `limits` are the fields that limit a reply and `refused` those that it does not take; others are
    ignored. `top` is how many alternatives it gives, `ids` whether it takes `logprob_token_ids`,
    `echo` the fields that get log-probabilities of the prompt, `schema` where in the body it looks
    for a schema, `tokenizer` the field of /tokenize. `quiet` is the part of a body that keeps its
    model from thinking: None where the model does not think.
    """

    base: str = "/v1"
    row: Body = field(default_factory=dict)
    routes: Mapping[str, Body] = field(default_factory=dict)
    limits: tuple[str, ...] = ("max_tokens", "max_completion_tokens")
    refused: tuple[str, ...] = ()
    completions: bool = True
    top: int = 20
    chat_form: bool = False
    ids: bool = False
    echo: tuple[str, ...] = ()
    schema: tuple[str, ...] = ("response_format", "json_schema", "schema")
    tokenizer: str = ""
    quiet: Body | None = None
    header: str = ""


OPENAI = Speaker(
    limits=("max_completion_tokens",),
    refused=("max_tokens",),
    completions=False,
    quiet={"reasoning_effort": "minimal"},
)
SPEAKERS: Mapping[str, Speaker] = {
    "openai": OPENAI,
    "azure": replace(OPENAI, base="/openai/deployments/m", header="api-key"),
    "openrouter": Speaker(
        row={"canonical_slug": "m", "top_provider": {}, "pricing": {}, "context_length": 4096},
        quiet={"reasoning": {"enabled": False}},
    ),
    "vllm": Speaker(
        row={"owned_by": "vllm", "max_model_len": 4096},
        routes={"//version": {"version": "0.32.0"}},
        ids=True,
        echo=("echo", "prompt_logprobs"),
        tokenizer="prompt",
        quiet={"chat_template_kwargs": {"enable_thinking": False}},
    ),
    "sglang": Speaker(
        row={"owned_by": "sglang", "max_model_len": 4096},
        routes={"//get_server_info": {"version": "0.5.23"}},
        top=200,
        echo=("echo",),
        tokenizer="prompt",
    ),
    "llama.cpp": Speaker(
        row={"owned_by": "llamacpp"},
        routes={"//props": {"build_info": "b1", "default_generation_settings": {"n_ctx": 4096}}},
        top=1000,
        chat_form=True,
        tokenizer="content",
    ),
    "ollama": Speaker(
        row={"owned_by": "library"},
        routes={"//api/version": {"version": "0.30.0"}},
        limits=("max_tokens",),
        quiet={"reasoning_effort": "none"},
    ),
    "tgi": Speaker(
        row={"owned_by": MODEL},
        routes={"//info": {"version": "3.3.6", "max_total_tokens": 4096}},
        top=5,
        echo=("decoder_input_details",),
        schema=("response_format", "value"),
        tokenizer="inputs",
    ),
    "unknown": Speaker(schema=("nowhere",)),
}


def speak(server: Server, speaker: Speaker) -> str:
    """Script every route of a server as the speaker has it; returns its base URL."""
    server.forget()
    base = f"/{speaker.base}"
    server.script(f"{base}/models", sends({"data": [{"id": MODEL, **speaker.row}]}))
    for path, told in speaker.routes.items():
        server.script(path, sends(told))
    server.script(f"{base}/chat/completions", _spoken(speaker))
    if speaker.completions:
        server.script(f"{base}/completions", _spoken(speaker))
    if speaker.tokenizer:
        server.script("//tokenize", _tokenizes(speaker))
    if "decoder_input_details" in speaker.echo:
        server.script("//generate", _details)
    return server.url.removesuffix("/v1") + speaker.base


SAYS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven"]
IDS = {"\n": 1, "Yes": 5, " Yes": 6, "yes": 7, "No": 8, " No": 9, "no": 10, "The": 11, "It": 12}
TOP = {"Yes": -0.4, "No": -1.8, "The": -3.0, " Yes": -4.0, "It": -5.0, "yes": -6.0, " No": -7.0}


def _words(text: str) -> list[int]:
    """Ids of a text: one for a text of the vocabulary, else one for every word."""
    if len(text) > 1 and text.startswith("\n"):
        return [1, *_words(text[1:])]
    return [IDS[text]] if text in IDS else [1000 + len(word) for word in (*text.split(), "")]


def _tokenizes(speaker: Speaker) -> Behaviour:
    async def behave(_request: web.Request, body: Body) -> web.StreamResponse:
        ids = _words(body[speaker.tokenizer])
        if speaker.tokenizer == "inputs":
            return web.json_response([{"id": i, "text": "?", "start": 0, "stop": 1} for i in ids])
        return web.json_response({"tokens": ids, "count": len(ids)})

    return behave


async def _details(_request: web.Request, body: Body) -> web.StreamResponse:
    tokens = _split(body["inputs"])
    steps = [{"id": i, "text": token, "logprob": -1.0} for i, token in enumerate(tokens)]
    prefill = [{**steps[0], "logprob": None}, *steps[1:]]
    answer = {"generated_text": "x", "details": {"prefill": prefill, "generated_tokens": 1}}
    return web.json_response([answer] if body.get("list") else answer)


def _split(text: str) -> list[str]:
    return re.findall(r"\s*\S+|\s+", text)


def _spoken(speaker: Speaker) -> Behaviour:
    async def behave(request: web.Request, body: Body) -> web.StreamResponse:
        if speaker.header and speaker.header not in request.headers:
            return web.json_response({"error": {"message": "no key"}}, status=401)
        for name in speaker.refused:
            if name in body:
                told = f"Unsupported parameter: '{name}' is not supported with this model."
                return web.json_response({"error": {"message": told}}, status=400)
        asked = body.get("top_logprobs", body.get("logprobs")) or 0
        if not speaker.ids and asked is not True and asked > speaker.top:
            told = f"top_logprobs must be at most {speaker.top}"
            return web.json_response({"error": {"message": told}}, status=400)
        if not body.get("messages") and (scored := _echoed(speaker, body)):
            return web.json_response(scored)
        return web.json_response(_answered(speaker, body))

    return behave


def _echoed(speaker: Speaker, body: Body) -> dict[str, Any] | None:
    """The prompt's log-probabilities in the form asked for, if the server knows it."""
    name = next((name for name in speaker.echo if body.get(name) not in (None, False)), None)
    if name is None:
        return None
    tokens = _split(body["prompt"])
    values = [None, *[-1.0] * (len(tokens) - 1)]
    if name == "echo":
        found = {"tokens": tokens, "token_logprobs": values, "text_offset": [-1] * len(tokens)}
        return completion(body["prompt"], logprobs=found)
    steps = [v and {"1": {"logprob": v, "decoded_token": t}} for t, v in zip(tokens, values)]  # noqa: B905
    return completion("x", prompt_logprobs=steps)


def _answered(speaker: Speaker, body: Body) -> dict[str, Any]:
    limit = next((body[name] for name in speaker.limits if name in body), len(SAYS))
    said = ['{"answer":', f'"{schema}"}}'] if (schema := _held(speaker, body)) else SAYS
    thinks = speaker.quiet is not None and not speaker.quiet.items() <= body.items()
    said = [*["hm"] * 40, *said] if thinks and body.get("messages") else said
    text = said[:limit]
    for stop in body.get("stop", ()):
        text = text[: text.index(stop)] if stop in text else text
    seen = sum(len(turn["content"].split()) for turn in body.get("messages", ())) or 9
    finish = "length" if len(text) == limit < len(said) else "stop"
    top = _alternatives(speaker, body)
    usage = {"usage": {"prompt_tokens": seen, "completion_tokens": len(text)}}
    if "messages" in body:
        thought = " ".join(word for word in text if word == "hm") if thinks else ""
        visible = " ".join(word for word in text if word != "hm")
        return chat(visible, finish=finish, top=top, reasoning_content=thought) | usage
    found = {"top_logprobs": [top]} if top else None
    if speaker.chat_form and top:
        found = chat(top=top)["choices"][0]["logprobs"]
    return completion(" ".join(text), logprobs=found, finish=finish) | usage


def _held(speaker: Speaker, body: Body) -> str:
    """The only answer that the schema allows, where the server finds the schema."""
    found: Any = body
    for name in speaker.schema:
        found = found.get(name) if isinstance(found, dict) else None
    return found["properties"]["answer"]["enum"][0] if isinstance(found, dict) else ""


def _alternatives(speaker: Speaker, body: Body) -> dict[str, float] | None:
    if body.get("logprobs") in (None, False):
        return None
    if speaker.ids and body.get("logprob_token_ids"):
        names = {number: name for name, number in IDS.items()}
        return {f"token_id:{i}": TOP.get(names[i], -9.0) for i in body["logprob_token_ids"]}
    count = body.get("top_logprobs", body["logprobs"])
    return dict(list(TOP.items())[:count])
