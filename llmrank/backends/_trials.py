"""The tiny requests of a probe, each of which tries one thing and looks at its effect."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace

from llmrank.backends._answers import Failure
from llmrank.backends._greeting import Greeting
from llmrank.backends._wire import NoRoute, Rejection
from llmrank.backends.dialects import (
    CHAT,
    COMPLETIONS,
    IDS,
    LIKELIHOOD,
    ROOT,
    STRUCTURED,
    THINKING_OFF,
)
from llmrank.backends.openai import OpenAIBackend
from llmrank.backends.wrappers.base import side_by_side
from llmrank.errors import CapabilityError
from llmrank.plan import Write
from llmrank.request import Message, Params, Reply, Request, Want

QUESTION = "Is the sky blue on a clear day? Answer Yes or No."
LABELS = {"Yes": ("Yes", "yes", " Yes", " yes"), "No": ("No", "no", " No", " no")}
TARGET = " Yes, it is."
LONG = "Write the numbers from one to twenty as words."
MANNERS = (
    "You are a careful and patient judge of the relevance of passages. You weigh every passage "
    "against the query, and you never let the length of a passage or its place mislead you."
)
SECRET = "kestrel-47"
SCHEMA = {
    "type": "object",
    "properties": {"answer": {"type": "string", "enum": [SECRET]}},
    "required": ["answer"],
    "additionalProperties": False,
}
ABOUT = ("what colour is the sky", ("The sky is blue.", "Knead the dough for ten minutes."))

Trial = Callable[[], Awaitable["Capability"]]

_ATTEMPTS = 3
_LONGEST_WAIT = 10.0
_FEW_TOKENS = 4


@dataclass(frozen=True, slots=True)
class Capability:
    """Whether a server can do something, and a short note: how, or why not.

    It is not `settled` where trouble left it open.
    """

    works: bool
    note: str = ""
    settled: bool = True

    def __bool__(self) -> bool:
        return self.works


def _request(want: Want, *, chat: bool = False, text: str = QUESTION, limit: int = 1) -> Request:
    plain = f"{text}\nAnswer:" if want == "labels" else text
    return Request(
        ask=Write("probe", ()),
        want=want,
        messages=(Message("user", text),) if chat else (),
        prompt="" if chat else plain,
        target=TARGET if want == "likelihood" else "",
        texts=("water", "fire") if want == "vectors" else (),
        labels=LABELS if want == "labels" else {},
        params=Params(max_tokens=limit),
    )


class Trials(Greeting):
    """Tries one thing after another with a backend, which uses what is found.

    `blocked` are the refusals, and the troubles that leave something open.
    """

    def __init__(self, backend: OpenAIBackend, wait: float) -> None:
        super().__init__(backend)
        self._wait = wait
        self.blocked: list[str] = []
        self.seconds: float | None = None
        self.sample: dict[str, float] = {}

    async def all(self, known: Mapping[str, Capability]) -> dict[str, Capability]:
        """Every capability by name. What is settled, or needs a missing route, is not tried."""
        chat, plain = await side_by_side(
            [
                self._once(name, known, trial)
                for name, trial in (("chat", self._chat), ("completions", self._plain))
            ]
        )
        either = min((chat, plain), key=lambda one: (not one.works, one.settled))
        groups: list[tuple[Capability, dict[str, Trial]]] = [
            (chat, self._of_chat()),
            (chat, {"chat_logprobs": lambda: self._top(chat=True)}),
            (plain, {"completion_logprobs": lambda: self._top(chat=False)}),
            (either, {"label_ids": lambda: self._exact(chat=bool(chat))}),
            (Capability(True) if self._native else plain, self._ways()),
            *((Capability(True), {name: trial}) for name, trial in self._of_others().items()),
        ]
        found = await side_by_side(
            [self._group(needed, known, trials) for needed, trials in groups]
        )
        can = {"chat": chat, "completions": plain}
        return {**can, **{name: one for group in found for name, one in group.items()}}

    async def _group(
        self, needed: Capability, known: Mapping[str, Capability], trials: Mapping[str, Trial]
    ) -> dict[str, Capability]:
        """Trials one after another, as later ones may use what earlier ones found."""
        return {
            name: await self._once(name, known, trial) if needed else needed
            for name, trial in trials.items()
        }

    async def _once(self, name: str, known: Mapping[str, Capability], trial: Trial) -> Capability:
        before = known.get(name)
        return before if before is not None and before.settled else await self._run(trial)

    def _of_chat(self) -> dict[str, Trial]:
        return {
            "token_limit": self._token_limit,
            "reasoning": self._reasoning,
            "system_role": self._system,
            "stop": self._stop,
            "structured_output": self._structured,
        }

    def _of_others(self) -> dict[str, Trial]:
        return {
            "tokenizer": self._tokenizer,
            "embeddings": self._embeddings,
            "score": self._score,
            "rerank": self._rerank,
            "decisions": self._decisions,
        }

    @property
    def _native(self) -> bool:
        """Whether the server has a route of its own that scores a given text."""
        return any(LIKELIHOOD[name].native for name in self._backend.dialect.likelihood)

    async def _run(self, trial: Trial) -> Capability:
        for attempt in range(_ATTEMPTS):
            try:
                return await trial()
            except Failure as failure:
                told, settled = str(failure), not failure.transient
                wait = failure.retry_after or self._wait * 2**attempt
                if settled or failure.late:
                    break
            except NoRoute as error:
                return Capability(False, error.told)
            except CapabilityError as error:
                return Capability(False, str(error))
            except Rejection as rejection:
                self.blocked.append(str(rejection))
                # A key may be good for some routes only. Another key or more credit may come.
                return Capability(
                    False, f"refused: {rejection.told}", rejection.status in (403, 404)
                )
            if attempt < _ATTEMPTS - 1:
                await asyncio.sleep(min(wait, _LONGEST_WAIT))
        if not settled:
            self.blocked.append(told)
        return Capability(False, told, settled)

    async def _text(self, request: Request, wish: Mapping[str, object] | None = None) -> Reply:
        started = time.perf_counter()
        reply = await self._backend.text(request, wish)
        if request.params.max_tokens == 1:
            took = time.perf_counter() - started
            self.seconds = took if self.seconds is None else min(self.seconds, took)
        return reply

    async def _chat(self) -> Capability:
        await self._text(_request("text", chat=True))
        return Capability(True)

    async def _plain(self) -> Capability:
        await self._text(_request("text"))
        return Capability(True)

    async def _token_limit(self) -> Capability:
        """Which field holds a long answer back."""
        backend = self._backend
        refused = ""
        for name in backend.dialect.limits:
            if refused:
                backend.adopt(replace(backend.learnt, limit=name))
            reply = await self._text(_request("text", chat=True, text=LONG))
            used = reply.usage.completion_tokens
            if reply.finish == "length" or 0 < used <= _FEW_TOKENS:
                return Capability(True, backend.limit)
            refused = f"{backend.limit} is accepted and changes nothing"
        return Capability(False, refused)

    async def _reasoning(self) -> Capability:
        """Whether the model thinks before it answers, and what keeps it from that."""
        backend = self._backend
        backend.adopt(replace(backend.learnt, thinking=""))
        reply = await self._text(_request("text", chat=True, limit=48))
        if not _thinks(reply):
            return Capability(False, "it answers at once")
        for name in backend.dialect.thinking_off:
            try:
                reply = await self._text(_request("text", chat=True, limit=48), THINKING_OFF[name])
            except Failure as failure:
                if failure.transient:
                    raise
                continue
            if not _thinks(reply) and reply.text.strip():
                backend.adopt(replace(backend.learnt, thinking=name))
                return Capability(True, f"it thinks; {name} keeps it from that")
        return Capability(True, "it thinks, and nothing known keeps it from that")

    async def _system(self) -> Capability:
        request = _request("text", chat=True)
        alone = await self._text(request)
        reply = await self._text(
            replace(request, messages=(Message("system", MANNERS), *request.messages))
        )
        if reply.usage.prompt_tokens > alone.usage.prompt_tokens > 0:
            return Capability(True, "its tokens are counted")
        return Capability(False, "accepted, and nothing shows that it is read")

    async def _stop(self) -> Capability:
        """Whether a piece of an answer, given as a stop sequence, ends the same answer."""
        request = _request("text", chat=True, text=LONG, limit=16)
        words = (await self._text(request)).text.split()
        if len(words) < 2:
            return Capability(False, "not tried: the model writes no text to stop")
        request = replace(request, params=replace(request.params, stop=(words[1],)))
        reply = await self._text(request)
        if words[1] in reply.text:
            return Capability(False, "accepted and changes nothing")
        return Capability(True)

    async def _structured(self) -> Capability:
        """Whether an answer can be held to a schema that no model would meet by itself."""
        backend, note = self._backend, ""
        for name in backend.dialect.structured:
            request = _request("text", chat=True, limit=48)
            try:
                reply = await self._text(request, STRUCTURED[name](SCHEMA))
            except Failure as failure:
                if failure.transient:
                    raise
                note = str(failure)
                continue
            try:
                held = json.loads(reply.text) == {"answer": SECRET}
            except ValueError:
                held = False
            if held:
                return Capability(True, name)
            note = f"{name} is accepted and changes nothing"
        return Capability(False, note)

    async def _tokenizer(self) -> Capability:
        one, more = [await self._backend.encode(text) for text in ("sky", "the sky is so blue")]
        if not 0 < len(one) < len(more):
            return Capability(False, "it sends no tokens of the text")
        return Capability(True, f"{len(more)} tokens in 5 words")

    async def _top(self, *, chat: bool) -> Capability:
        """The best way to label probabilities, and those of an obvious answer as a sample."""
        (reply,) = await self._backend.answer([_request("labels", chat=chat)])
        if reply.error:
            raise Failure(reply.error, transient=reply.transient, retry_after=reply.retry_after)
        way = self._backend.learnt.labels.get(CHAT if chat else COMPLETIONS)
        if way is None:
            return Capability(False, f"no answer ({reply.finish})")
        if chat or not self.sample:
            self.sample = {
                label: math.fsum(math.exp(reply.label_logprobs.get(form, -math.inf)) for form in of)
                for label, of in LABELS.items()
            }
        told = "exact token ids" if way == IDS else f"the {way.removeprefix('top-')} likeliest"
        return Capability(True, told)

    async def _exact(self, *, chat: bool) -> Capability:
        backend = self._backend
        if IDS not in backend.dialect.labels:
            return Capability(False, f"{backend.learnt.dialect} has no field for token ids")
        reply = await backend.labels_by(IDS, _request("labels", chat=chat))
        if reply is None:
            return Capability(False, "the token ids asked for do not come back")
        forms = sum(map(len, LABELS.values()))
        return Capability(True, f"{len(reply.label_logprobs)} of {forms} forms are one token")

    def _ways(self) -> dict[str, Trial]:
        names = {name.split(",")[0]: None for name in self._backend.dialect.likelihood}
        names = {"echo": None, "prompt_logprobs": None, **names}
        return {name: _bound(self._scores, name) for name in names}

    async def _scores(self, kind: str) -> Capability:
        backend = self._backend
        ways = [name for name in backend.dialect.likelihood if name.split(",")[0] == kind]
        note = f"the server ignores {kind}" if ways else f"{backend.learnt.dialect} has none"
        for name in ways:
            try:
                reply = await backend.score(_request("likelihood"), name)
            except Failure as failure:
                if failure.transient:
                    raise
                note = str(failure)
                continue
            if reply is not None:
                if not backend.learnt.likelihood:
                    backend.adopt(replace(backend.learnt, likelihood=name))
                return Capability(True, f"{reply.tokens} tokens scored")
        return Capability(False, note)

    async def _embeddings(self) -> Capability:
        reply = await self._backend.embed(_request("vectors"))
        if reply.vectors is None or reply.vectors.ndim != 2:
            return Capability(False, "no vectors")
        return Capability(True, f"{reply.vectors.shape[1]} dimensions")

    async def _score(self) -> Capability:
        query, texts = ABOUT
        body = {"model": self._backend.model, "text_1": query, "text_2": list(texts)}
        return _told_apart(await self._backend.wire.send(f"{ROOT}/score", body), "data", "score")

    async def _rerank(self) -> Capability:
        query, texts = ABOUT
        body = {"model": self._backend.model, "query": query, "documents": list(texts)}
        data = await self._backend.wire.send("/rerank", body)
        name = "score" if isinstance(data, list) else "relevance_score"
        return _told_apart(data, "results", name)

    async def _decisions(self) -> Capability:
        query, texts = ABOUT
        questions = [
            {"type": "predicate", "instructions": f"This passage answers the query: {text}"}
            for text in texts
        ]
        body = {"model": self._backend.model, "input": query, "questions": questions}
        data = await self._backend.wire.send("/decisions", body)
        return _told_apart(data, "answers", "probability")


def _bound(trial: Callable[[str], Awaitable[Capability]], name: str) -> Trial:
    return lambda: trial(name)


def _thinks(reply: Reply) -> bool:
    return bool(reply.reasoning or reply.usage.reasoning_tokens or "<think" in reply.text)


def _told_apart(data: object, rows: str, value: str) -> Capability:
    """Whether two passages, one of them off the topic, have got two different numbers."""
    found = data.get(rows) if isinstance(data, dict) else data
    if not isinstance(found, list):
        return Capability(False, f"the answer holds no {rows}")
    numbers = [row.get(value) for row in found if isinstance(row, dict)]
    if len(numbers) != 2 or not all(isinstance(n, int | float) for n in numbers):
        return Capability(False, f"the answer does not hold two numbers named {value}")
    if numbers[0] == numbers[1]:
        return Capability(False, "a passage on the topic and one off it get the same number")
    return Capability(True)
