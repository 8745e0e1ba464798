"""Finding out what an OpenAI-compatible server can do, with about ten tiny requests."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from llmrank.backends._answers import Failure
from llmrank.backends.openai import LIKELIHOOD_WAYS, NoRoute, OpenAIBackend, Rejection
from llmrank.errors import BackendError, CapabilityError
from llmrank.plan import Write
from llmrank.request import Message, Params, Request, Want

QUESTION = "Is water wet? Answer Yes or No."


@dataclass(frozen=True, slots=True)
class Capability:
    """Whether a server can do something, and a short note: how, or why not."""

    works: bool
    note: str = ""

    def __bool__(self) -> bool:
        return self.works


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """What a server that answered can do with one model.

    `models` are the ids it lists and `version` is what /version says, both empty where it says
    nothing. `seconds` is the time of a one-token call, None where it generates no text.
    """

    url: str
    model: str
    models: tuple[str, ...]
    version: str
    chat: Capability
    completions: Capability
    chat_logprobs: Capability
    completion_logprobs: Capability
    echo: Capability
    prompt_logprobs: Capability
    embeddings: Capability
    seconds: float | None

    @property
    def uses(self) -> Mapping[str, str]:
        """For each family of methods what it will use, or why it is not available."""
        return {
            "listwise": _use(("chat text", self.chat), ("completions text", self.completions)),
            "yes/no": _use(
                (f"label probabilities from {self.chat_logprobs.note}", self.chat_logprobs),
                (
                    f"label probabilities from {self.completion_logprobs.note} of completions",
                    self.completion_logprobs,
                ),
            ),
            "likelihood": _use(("echo", self.echo), ("prompt_logprobs", self.prompt_logprobs)),
            "dense": _use(("embeddings", self.embeddings)),
        }


def _use(*choices: tuple[str, Capability]) -> str:
    """The first that works; the reason of the first that does not, where none does."""
    for name, capability in choices:
        if capability:
            return name
    return f"not available: {choices[0][1].note}"


async def probe(backend: OpenAIBackend) -> Probe:
    """What the backend's server can do with its model.

    Raises `BackendError` where nothing answers, or where the key, the account or the model is
    refused; a missing capability is never an error.
    """
    models = await _models(backend)
    version = await _version(backend)
    started = time.perf_counter()
    chat = await _tried(lambda: _generates(backend, _request("text", chat=True)))
    seconds = time.perf_counter() - started
    completions_started = time.perf_counter()
    completions = await _tried(lambda: _generates(backend, _request("text")))
    if not chat:
        seconds = time.perf_counter() - completions_started
    found = Probe(
        url=backend.url,
        model=backend.model,
        models=models,
        version=version,
        chat=chat,
        completions=completions,
        chat_logprobs=await _after(chat, lambda: _reports_top(backend, chat=True)),
        completion_logprobs=await _after(completions, lambda: _reports_top(backend, chat=False)),
        echo=await _after(completions, lambda: _scores(backend, "echo")),
        prompt_logprobs=await _after(completions, lambda: _scores(backend, "prompt_logprobs")),
        embeddings=await _tried(lambda: _embeds(backend)),
        seconds=seconds if chat or completions else None,
    )
    _refuse_silent(found)
    return found


def _refuse_silent(found: Probe) -> None:
    """A server that refuses or fails every call cannot be said to lack anything."""
    calls = (found.chat, found.completions, found.embeddings)
    blocked = [call.note for call in calls if call.note.startswith(_BLOCKED)]
    if blocked and not any(calls):
        raise BackendError(blocked[0])


_BLOCKED = ("not allowed by", "HTTP 5", "HTTP 4", "no answer from")


def _request(want: Want, *, chat: bool = False) -> Request:
    return Request(
        ask=Write("probe", ()),
        want=want,
        messages=(Message("user", QUESTION),) if chat else (),
        prompt="" if chat else QUESTION,
        target=" Yes, it is." if want == "likelihood" else "",
        texts=("water", "fire") if want == "vectors" else (),
        params=Params(max_tokens=1),
    )


async def _models(backend: OpenAIBackend) -> tuple[str, ...]:
    try:
        listed = (await backend.send("/models")).get("data")
    except Failure as failure:
        if not failure.status:
            raise BackendError(str(failure)) from None
        return ()
    except Rejection as rejection:
        if rejection.status == 401:
            raise
        return ()
    rows = listed if isinstance(listed, list) else []
    return tuple(str(row["id"]) for row in rows if isinstance(row, dict) and "id" in row)


async def _version(backend: OpenAIBackend) -> str:
    """The version of a server that tells it; OpenAI's does not."""
    parts = urlsplit(backend.url)
    if backend.official:
        return ""
    try:
        answer = await backend.send(f"{parts.scheme}://{parts.netloc}/version")
    except (Failure, Rejection):
        return ""
    return str(answer.get("version") or "")


async def _after(first: Capability, call: Callable[[], Awaitable[Capability]]) -> Capability:
    """Try something only where what it rests on works."""
    return await _tried(call) if first else first


async def _tried(call: Callable[[], Awaitable[Capability]]) -> Capability:
    try:
        return await call()
    except (Failure, CapabilityError, NoRoute) as error:
        return Capability(False, str(error))
    except Rejection as rejection:
        # A key may be good for some routes only.
        if rejection.status == 403:
            return Capability(False, str(rejection))
        raise


async def _generates(backend: OpenAIBackend, request: Request) -> Capability:
    (reply,) = await backend.answer([request])
    return Capability(not reply.error, reply.error)


async def _reports_top(backend: OpenAIBackend, *, chat: bool) -> Capability:
    top, _ = await backend.next_token(_request("labels", chat=chat))
    return Capability(True, f"top-{len(top)}") if top else Capability(False, "no log-probabilities")


async def _scores(backend: OpenAIBackend, name: str) -> Capability:
    note = "ignored"
    for way, wish in LIKELIHOOD_WAYS:
        if way != name:
            continue
        try:
            reply = await backend.score(_request("likelihood"), wish)
        except Failure as failure:
            note = str(failure)
            continue
        if reply is not None:
            return Capability(True, f"{reply.tokens} tokens scored")
    return Capability(False, note)


async def _embeds(backend: OpenAIBackend) -> Capability:
    (reply,) = await backend.answer([_request("vectors")])
    if reply.vectors is None or reply.vectors.ndim != 2:
        return Capability(False, reply.error or "no vectors")
    return Capability(True, f"{reply.vectors.shape[1]} dimensions")
