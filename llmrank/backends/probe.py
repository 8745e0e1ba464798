"""Finding out what an OpenAI-compatible server can do, with about ten tiny requests."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from llmrank.backends._answers import Failure
from llmrank.backends.openai import LIKELIHOOD_WAYS, NoRoute, OpenAIBackend, Rejection
from llmrank.errors import BackendError, CapabilityError
from llmrank.plan import Write
from llmrank.request import Message, Params, Reply, Request, Want

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
    trial = _Trial(backend)
    chat = await trial.run(trial.chat)
    completions = await trial.run(trial.completions)
    found = Probe(
        url=backend.url,
        model=backend.model,
        models=models,
        version=version,
        chat=chat,
        completions=completions,
        chat_logprobs=await trial.run(trial.chat_logprobs) if chat else chat,
        completion_logprobs=(
            await trial.run(trial.completion_logprobs) if completions else completions
        ),
        echo=await trial.run(trial.echo) if completions else completions,
        prompt_logprobs=await trial.run(trial.prompt_logprobs) if completions else completions,
        embeddings=await trial.run(trial.embeddings),
        seconds=trial.seconds,
    )
    if trial.blocked and not (chat or completions or found.embeddings):
        raise BackendError(trial.blocked[0])
    return found


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


class _Trial:
    """The calls that try one thing each; `blocked` are the answers that leave it open."""

    def __init__(self, backend: OpenAIBackend) -> None:
        self._backend = backend
        self.blocked: list[str] = []
        self.seconds: float | None = None

    async def run(self, call: Callable[[], Awaitable[Capability]]) -> Capability:
        try:
            return await call()
        except Failure as failure:
            if failure.transient:
                self.blocked.append(str(failure))
            return Capability(False, str(failure))
        except (CapabilityError, NoRoute) as error:
            return Capability(False, str(error))
        except Rejection as rejection:
            # A key may be good for some routes only.
            if rejection.status != 403:
                raise
            self.blocked.append(str(rejection))
            return Capability(False, str(rejection))

    async def chat(self) -> Capability:
        return await self._generates(_request("text", chat=True))

    async def completions(self) -> Capability:
        return await self._generates(_request("text"))

    async def chat_logprobs(self) -> Capability:
        return await self._reports_top(_request("labels", chat=True))

    async def completion_logprobs(self) -> Capability:
        return await self._reports_top(_request("labels"))

    async def echo(self) -> Capability:
        return await self._scores("echo")

    async def prompt_logprobs(self) -> Capability:
        return await self._scores("prompt_logprobs")

    async def embeddings(self) -> Capability:
        reply = await self._asked(_request("vectors"))
        if reply.vectors is None or reply.vectors.ndim != 2:
            return Capability(False, "no vectors")
        return Capability(True, f"{reply.vectors.shape[1]} dimensions")

    async def _generates(self, request: Request) -> Capability:
        reply = await self._asked(request)
        if self.seconds is None:
            self.seconds = reply.seconds
        return Capability(True)

    async def _asked(self, request: Request) -> Reply:
        (reply,) = await self._backend.answer([request])
        if reply.error:
            raise Failure(reply.error, transient=reply.transient)
        return reply

    async def _reports_top(self, request: Request) -> Capability:
        top, _ = await self._backend.next_token(request)
        if not top:
            return Capability(False, "the server returns no log-probabilities")
        return Capability(True, f"top-{len(top)}")

    async def _scores(self, name: str) -> Capability:
        note = f"the server ignores {name}"
        for way, wish in LIKELIHOOD_WAYS:
            if way != name:
                continue
            try:
                reply = await self._backend.score(_request("likelihood"), wish)
            except Failure as failure:
                note = str(failure)
                continue
            if reply is not None:
                return Capability(True, f"{reply.tokens} tokens scored")
        return Capability(False, note)
