"""A server that speaks the OpenAI API: OpenAI itself, vLLM, SGLang, llama.cpp or Ollama."""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NoReturn, cast
from urllib.parse import urlsplit, urlunsplit

import llmrank.backends.tokens as tokens
from llmrank.backends._answers import (
    Failure,
    next_token,
    pooled,
    read,
    retry_after,
    scored,
    text_reply,
    vectors_reply,
)
from llmrank.errors import BackendError, CapabilityError, InputError
from llmrank.request import Params, Reply, Request, Want

if TYPE_CHECKING:
    import openai

OPENAI_URL = "https://api.openai.com/v1"
CHAT, COMPLETIONS, EMBEDDINGS = "/chat/completions", "/completions", "/embeddings"

TOP, FEWER = 20, 5
"""How many of the likeliest tokens are asked for, and how many where the server refuses that."""

LIKELIHOOD_WAYS: Sequence[tuple[str, Mapping[str, object]]] = (
    ("echo", {"echo": True, "logprobs": 0, "max_tokens": 0}),
    ("echo", {"echo": True, "logprobs": 1, "max_tokens": 0}),
    ("prompt_logprobs", {"prompt_logprobs": 0, "max_tokens": 1}),
)
"""How to get log-probabilities of a given text, in the order of trying; the last is vLLM's own."""

_UNSENT = [
    f"X-Stainless-{name}"
    for name in ("Lang", "Package-Version", "OS", "Arch", "Runtime", "Runtime-Version", "Async")
]
"""What the SDK tells about this machine in every request: no server needs it, and it takes time."""

_MOST_STOPS = 4
_CONNECT_SECONDS = 10.0
_NO_SUCH_MODEL = re.compile(r"model.{0,120}?(not exist|not found|no access)|model_not_found", re.S)
_TOO_LONG = re.compile(
    r"context[ _](length|window|size)|maximum context|too many tokens|prompt is too long"
)
_LOGPROBS = re.compile(r"log_?prob|top_n_tokens")


class Rejection(BackendError):
    """The server refuses every request of this kind: key, account, model or route."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class NoRoute(Rejection):
    """The server has no such route, or not for this model."""


class OpenAIBackend:
    """A model behind an OpenAI-compatible server, asked one HTTP request at a time.

    The key is `api_key`, else $OPENAI_API_KEY; the server is `base_url`, else $OPENAI_BASE_URL,
    else OpenAI. `timeout` is in seconds and holds for a whole request. Connections belong to the
    event loop of the first request; `close` lets go of them.
    """

    wants: frozenset[Want] = frozenset({"text", "labels", "likelihood", "vectors"})
    batch = 1

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        timeout: float = 120.0,
    ) -> None:
        given = base_url or os.environ.get("OPENAI_BASE_URL")
        self.model = model
        self._url = (given or OPENAI_URL).rstrip("/")
        parts = _checked(self._url)
        self.url = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
        """Where the server is, without credentials."""
        self._key = api_key or os.environ.get("OPENAI_API_KEY") or ("EMPTY" if given else "")
        if not self._key:
            raise BackendError("no API key: set OPENAI_API_KEY, or name a server with --base-url")
        self._secrets = [s for s in (self._key, parts.password) if s and s != "EMPTY"]
        self.official = (parts.hostname or "").endswith("api.openai.com")
        """Whether the server is OpenAI's own."""
        self._timeout = timeout
        self._top = {CHAT: TOP, COMPLETIONS: TOP}
        self._way: int | None = None
        self._opened: openai.AsyncOpenAI | None = None

    def __repr__(self) -> str:
        return f"OpenAIBackend({self.identity!r})"

    @property
    def identity(self) -> str:
        """The model and its server."""
        return f"openai:{self.model}@{self.url}"

    async def answer(self, requests: Sequence[Request]) -> list[Reply]:
        """Replies in the order of the requests, one HTTP call for each.

        Raises `CapabilityError` where the server cannot give what a request wants, and
        `BackendError` where the key, the account or the model is refused.
        """
        if len(requests) == 1:
            return [await self._one(requests[0])]
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._one(request)) for request in requests]
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return [task.result() for task in tasks]

    async def close(self) -> None:
        """Close the connections."""
        if self._opened is not None:
            opened, self._opened = self._opened, None
            await opened.close()

    def count(self, text: str) -> int:
        """Tokens of a text, as `counting` says."""
        return self._counter[0](text)

    @property
    def counting(self) -> str:
        """How tokens are counted, in words."""
        return self._counter[1]

    @cached_property
    def _counter(self) -> tuple[Callable[[str], int], str]:
        return tokens.counter(self.model)

    async def _one(self, request: Request) -> Reply:
        started = time.perf_counter()
        try:
            if request.want == "text":
                reply = await self._text(request)
            elif request.want == "labels":
                reply = await self._labels(request)
            elif request.want == "likelihood":
                reply = await self._likelihood(request)
            else:
                reply = await self._vectors(request)
        except Failure as failure:
            reply = failure.reply()
        return replace(reply, seconds=time.perf_counter() - started)

    async def _text(self, request: Request) -> Reply:
        path = CHAT if request.messages else COMPLETIONS
        data = await self.send(path, self._body(request, request.params.max_tokens))
        return read(text_reply, data)

    async def _labels(self, request: Request) -> Reply:
        top, reply = await self.next_token(request)
        if reply.finish in ("refusal", "content_filter"):
            return reply
        if not top:
            raise CapabilityError(
                f"{self.url} returns no log-probabilities for {self.model}: ask a method that "
                "reads text (listwise), or a server that returns them (vLLM, SGLang, llama.cpp)"
            )
        forms = {form for forms in request.labels.values() for form in forms}
        return replace(reply, label_logprobs=pooled(top, forms))

    async def next_token(self, request: Request) -> tuple[list[tuple[str, float]], Reply]:
        """The likeliest next tokens with their log-probabilities, and the reply they came with.

        The list is empty where the server reports none; `CapabilityError` where it refuses to.
        """
        path = CHAT if request.messages else COMPLETIONS
        body = self._body(request, 1)
        while True:
            top = self._top[path]
            wish = (
                {"logprobs": True, "top_logprobs": top} if request.messages else {"logprobs": top}
            )
            try:
                data = await self.send(path, body | wish)
            except Failure as failure:
                self._ask_fewer(path, top, failure)
                continue
            return read(next_token, data)

    def _ask_fewer(self, path: str, top: int, failure: Failure) -> None:
        """Lower how many tokens are asked for, where that is what the server refused."""
        if not (failure.rejected and _LOGPROBS.search(str(failure).lower())):
            raise failure
        if top <= FEWER:
            raise CapabilityError(
                f"{self.url} gives no log-probabilities for {self.model} ({failure}): "
                "ask a method that reads text (listwise)"
            ) from None
        self._top[path] = FEWER

    async def _likelihood(self, request: Request) -> Reply:
        ways = range(len(LIKELIHOOD_WAYS)) if self._way is None else (self._way,)
        refused: list[str] = []
        for way in ways:
            try:
                reply = await self.score(request, LIKELIHOOD_WAYS[way][1])
            except NoRoute as error:
                refused.append(str(error))
                break
            except Failure as failure:
                if self._way is not None or not failure.rejected or _TOO_LONG.search(str(failure)):
                    raise
                refused.append(str(failure))
                continue
            if reply is not None:
                self._way = way
                return reply
        reason = refused[-1] if refused else "it ignores `echo` and `prompt_logprobs`"
        raise CapabilityError(
            f"{self.url} cannot score a given text with {self.model}: {reason}. Query likelihood "
            "works with vLLM's completions, or with a local model (--model local)"
        )

    async def score(self, request: Request, wish: Mapping[str, object]) -> Reply | None:
        """Log-probability of the target after the prompt, asked for in one of `LIKELIHOOD_WAYS`.

        None where the server answered but not with the log-probabilities of the given text.
        """
        if request.messages:
            raise CapabilityError(
                "a server scores a given text after a plain-text prompt only: for query likelihood "
                "use a prompt template without chat messages"
            )
        body: dict[str, object] = {"model": self.model, "prompt": request.prompt + request.target}
        data = await self.send(COMPLETIONS, body | {"temperature": 0.0, **wish})
        return read(lambda answered: scored(answered, request), data)

    async def _vectors(self, request: Request) -> Reply:
        body = {
            "model": self.model,
            "input": list(request.texts),
            "encoding_format": "float",
        }
        try:
            data = await self.send(EMBEDDINGS, body)
        except (NoRoute, Failure) as error:
            rejected = isinstance(error, Failure) and error.rejected
            if isinstance(error, Failure) and not (rejected and "support" in str(error).lower()):
                raise
            raise CapabilityError(
                f"{self.url} gives no embeddings with {self.model} ({error}): "
                "name an embedding model, or a server that runs one"
            ) from None
        return read(vectors_reply, data)

    def _body(self, request: Request, max_tokens: int) -> dict[str, object]:
        """What is common to chat and completions; parameters at their defaults stay out."""
        params: Params = request.params
        body: dict[str, object] = {"model": self.model, "temperature": params.temperature}
        if request.messages:
            body["messages"] = [{"role": m.role, "content": m.content} for m in request.messages]
        else:
            body["prompt"] = request.prompt
        # Other servers know `max_tokens` alone or both; OpenAI's reasoning models only the other.
        newer = self.official and request.messages
        body["max_completion_tokens" if newer else "max_tokens"] = max_tokens
        if params.top_p != 1.0:
            body["top_p"] = params.top_p
        if params.stop:
            if self.official and len(params.stop) > _MOST_STOPS:
                raise CapabilityError(f"OpenAI takes at most {_MOST_STOPS} stop sequences")
            body["stop"] = list(params.stop)
        if params.seed is not None:
            body["seed"] = params.seed
        return body

    async def send(self, path: str, body: Mapping[str, object] | None = None) -> dict[str, Any]:
        """One HTTP call, POST with a body and GET without, and the JSON object it returned.

        `path` is relative to the base URL or a whole URL. Raises `Failure`, or `Rejection` where
        asking again would be of no use.
        """
        client = self._client()
        import openai

        try:
            async with asyncio.timeout(self._timeout):
                # As text: the SDK's models cost more than the whole rest of reading a reply, and
                # do not check anything.
                if body is None:
                    text = await client.get(path, cast_to=str)
                else:
                    text = await client.post(path, cast_to=str, body=body)
        except TimeoutError:
            raise self._late() from None
        except openai.APIStatusError as error:
            self._raise_status(path, error)
        except openai.APIConnectionError as error:
            raise self._unreachable(error) from None
        except UnicodeEncodeError:
            raise Failure("the text holds lone surrogates, which cannot be sent") from None
        try:
            data = json.loads(text)
        except ValueError:
            raise Failure(
                f"{self.url} answered with something that is not JSON: {self._told(text)[:80]!r}",
                status=200,
                transient=True,
            ) from None
        if not isinstance(data, dict) or data.get("error"):
            told = self._told(data)
            raise Failure(f"{self.url} answered with an error: {told}", status=200, transient=True)
        return data

    def _client(self) -> openai.AsyncOpenAI:
        if self._opened is None:
            import openai

            try:
                transport = openai.DefaultAioHttpClient()
            except RuntimeError as error:
                raise BackendError(
                    "the HTTP transport is missing: pip install 'openai[aiohttp]'"
                ) from error
            connect = min(_CONNECT_SECONDS, self._timeout)
            self._opened = openai.AsyncOpenAI(
                api_key=self._key,
                base_url=self._url,
                max_retries=0,
                timeout=openai.Timeout(self._timeout, connect=connect),
                http_client=transport,
                default_headers=dict.fromkeys(_UNSENT, cast("str", openai.Omit())),
            )
        return self._opened

    def _late(self) -> Failure:
        return Failure(f"{self.url} did not answer within {self._timeout:g} s", transient=True)

    def _unreachable(self, error: BaseException) -> Failure:
        # The SDK calls most lost connections a timeout; the first cause knows better.
        cause = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        if isinstance(cause, TimeoutError):
            return self._late()
        told = self._told(str(cause) or type(cause).__name__)
        return Failure(f"no answer from {self.url}: {told}", transient=True)

    def _raise_status(self, path: str, error: openai.APIStatusError) -> NoReturn:
        """Raise what an HTTP status other than 200 means."""
        status, told = error.status_code, self._told(error.body or error.message)
        where = f"{self.url} (HTTP {status}): {told}"
        if status in (401, 403):
            raise Rejection(
                f"not allowed by {where}; check OPENAI_API_KEY and what it may use", status
            ) from None
        if status == 402 or "insufficient_quota" in (error.code, error.type):
            raise Rejection(f"no credit left at {where}; check the account", status) from None
        if status in (404, 405, 501):
            if status == 404 and _NO_SUCH_MODEL.search(f"{error.code} {told}".lower()):
                raise Rejection(f"unknown model at {where}; check --model", status) from None
            raise NoRoute(
                f"no {path} for {self.model} at {where}; check that the base URL ends in /v1",
                status,
            ) from None
        transient = status in (408, 409, 429) or status >= 500
        if not transient and _TOO_LONG.search(f"{error.code} {told}".lower()):
            told = (
                f"the prompt does not fit the model's context length ({told}): show fewer or "
                "shorter passages (--passage-words, a smaller window)"
            )
        raise Failure(
            f"HTTP {status} from {self.url}: {told}",
            status=status,
            transient=transient,
            retry_after=retry_after(error.response.headers) if transient else None,
        ) from None

    def _told(self, body: object) -> str:
        """What a server said went wrong, on one line and without secrets."""
        while isinstance(body, dict):
            body = body.get("message") or body.get("detail") or body.get("error") or str(body)
        text = " ".join(str(body).split())
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text[:300]


def _checked(url: str) -> Any:  # noqa: ANN401 - urlsplit's result type has no public name
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError("the base URL is not one", remedy="write it like http://localhost:8000/v1")
    return parts
