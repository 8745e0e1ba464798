"""The decisions endpoint: typed questions about a query, answered by probabilities without text."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from llmrank.backends._answers import Failure, read
from llmrank.backends._patience import patiently
from llmrank.backends._wire import NoRoute
from llmrank.backends.dialects import UNKNOWN
from llmrank.backends.openai import OpenAIBackend
from llmrank.backends.probe import Greeter
from llmrank.backends.wrappers.base import side_by_side
from llmrank.errors import BackendError, CapabilityError, SpecError
from llmrank.request import Reply, Request, Tokenizer, Want
from llmrank.types import Usage

PATH = "/decisions"

YES_NO = {"yes", "no"}
MOST_LEVELS = 10
"""Levels that vLLM and SGLang take in a score; more labels become a choice."""

WORDING = 1
"""Part of the identity: to be raised when a question is put otherwise than before."""

INPUT = "Query: {query}"
PREDICATE = "The passage below answers the query.\n\nPassage: {passage}"
GRADE = (
    "How well does the passage below answer the query? The grades go from the worst to the best."
    "\n\nPassage: {passage}"
)

UNTOLD = (
    "questions are put to it as OpenAI takes them; name its kind with the model, as in "
    "decisions:MODEL,dialect=sglang"
)
"""What it means that the kind of a server is not known."""

ROUNDING = 1e-6
"""By how much a probability may lie outside 0 and 1."""

Probabilities = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class _Form:
    """How one kind of server wants its questions and gives its answers, and how many in a call.

    `question` gets the number of the question in its call; `answers` returns, in their order,
    probabilities of the labels, or None where the model declined.
    """

    most: int
    question: Callable[[int, Request], dict[str, Any]]
    answers: Callable[[Mapping[str, Any], Sequence[Request]], list[Probabilities | None]]


class DecisionsBackend:
    """A decision model behind `POST /v1/decisions`: grades many passages of a query in one call.

    The query is the input, every passage stands in a question of its own, so a grade does not
    depend on what is asked beside it as long as the server answers the questions apart (vLLM's
    next-token models and SGLang do; OpenAI does not say). Yes and no are a predicate, other labels
    a score with the labels as levels, more than ten of them a choice. A question that the model
    declines is a refusal of that request alone. What a server does not take for one passage or for
    their number is asked again in two halves. Up to `calls` calls are under way at once; one that
    fails in passing is made up to six times. `base_url`, `api_key`, `timeout` and `dialect` are
    those of `OpenAIBackend`. The tokens of a call are shared out evenly among its requests.
    """

    wants: frozenset[Want] = frozenset({"pair"})
    batch = 800

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        timeout: float = 120.0,
        dialect: str = "",
        calls: int = 8,
    ) -> None:
        if calls < 1:
            raise SpecError(f"calls must be at least 1, not {calls}")
        self._server = OpenAIBackend(
            model, base_url=base_url, api_key=api_key, timeout=timeout, dialect=dialect
        )
        self._free = asyncio.Semaphore(calls)
        self._greeter = Greeter(self._server, means=UNTOLD)
        self._most: int | None = None

    def __repr__(self) -> str:
        return f"DecisionsBackend({self.identity!r})"

    @property
    def identity(self) -> str:
        """The model and its server, and how the questions are put."""
        return f"decisions:{self._server.model}@{self._server.url}#wording={WORDING}"

    @property
    def tokenizer(self) -> Tokenizer:
        """How the model reads text, as exactly as can be known."""
        return self._server.tokenizer

    @property
    def counter(self) -> Tokenizer:
        """The same as far as no server has to be asked."""
        return self._server.counter

    async def close(self) -> None:
        """Close the connections."""
        await self._server.close()

    async def answer(self, requests: Sequence[Request]) -> list[Reply]:
        """Replies in the order of the requests, those of one query in as few calls as possible.

        Raises `CapabilityError` where the server has no such endpoint, and `BackendError` where it
        refuses key, account or model, or answers nothing at all.
        """
        await self._greeter.greeted()
        groups = list(self._groups(requests))
        found = await side_by_side([self._freely([requests[i] for i in own]) for own in groups])
        replies: dict[int, Reply] = {}
        for own, got in zip(groups, found, strict=True):
            replies |= zip(own, got, strict=True)
        if replies and all(reply.transient for reply in replies.values()):
            raise BackendError(f"{self.identity} fails; last: {replies[0].error}")
        return [replies[i] for i in range(len(requests))]

    @property
    def _form(self) -> _Form:
        return FORMS.get(self._server.learnt.dialect, FORMS[UNKNOWN])

    def _groups(self, requests: Sequence[Request]) -> Iterator[list[int]]:
        """Places of requests with the same query, in groups of what one call takes."""
        most = self._most or self._form.most
        queries: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            queries.setdefault(request.texts[0], []).append(i)
        for places in queries.values():
            for start in range(0, len(places), most):
                yield places[start : start + most]

    async def _freely(self, requests: Sequence[Request]) -> list[Reply]:
        async with self._free:
            return await self._ask(requests)

    async def _ask(self, requests: Sequence[Request]) -> list[Reply]:
        """Replies to requests with one query; what is refused as a whole is asked in halves."""
        started = time.perf_counter()
        try:
            data = await patiently(lambda: self._server.send(PATH, self._body(requests)))
            replies = read(lambda answered: self._read(answered, requests), data)
        except NoRoute as error:
            told = f"{self._server.url} has no decisions endpoint for {self._server.model}"
            raise CapabilityError(f"{told} ({error.told})") from None
        except Failure as failure:
            count = len(requests)
            apart = failure.rejected or failure.overflow or failure.finish or failure.status == 413
            if not (apart and count > 1):
                return [failure.reply()] * count
            half = -(-count // 2)
            replies = [*await self._ask(requests[:half]), *await self._ask(requests[half:])]
            if not any(reply.error for reply in replies):
                self._most = min(self._most or count, half)
            return replies
        seconds = (time.perf_counter() - started) / len(requests)
        return [replace(reply, seconds=seconds) for reply in replies]

    def _body(self, requests: Sequence[Request]) -> dict[str, object]:
        return {
            "model": self._server.model,
            "input": INPUT.format(query=requests[0].texts[0]),
            "questions": [self._form.question(i, request) for i, request in enumerate(requests)],
        }

    def _read(self, data: Mapping[str, Any], requests: Sequence[Request]) -> list[Reply]:
        answers = self._form.answers(data, requests)
        if len(answers) != len(requests):
            raise ValueError(f"{len(answers)} answers to {len(requests)} questions")
        shares = _shares(data, len(requests))
        model = data.get("model") or ""
        return [
            replace(_reply(*pair), usage=usage, model=model)
            for pair, usage in zip(zip(requests, answers, strict=True), shares, strict=True)
        ]


def _reply(request: Request, found: Probabilities | None) -> Reply:
    """One answer; a label with the probability 0 is one that was not reported."""
    if found is None:
        return Reply(finish="refusal")
    values = {label: found.get(label) for label in request.labels}
    logs = {}
    for label, value in values.items():
        if not isinstance(value, int | float) or not -ROUNDING <= value <= 1 + ROUNDING:
            return Reply(error=f"the answer holds what is no probability: {values}")
        if value > 0:
            logs[request.labels[label][0]] = min(0.0, math.log(value))
    return Reply(label_logprobs=logs)


def _shares(data: Mapping[str, Any], count: int) -> list[Usage]:
    """The tokens of a call, shared out evenly to the last one."""
    told = data.get("usage") or {}
    prompt = told.get("input_tokens", told.get("prompt_tokens")) or 0
    completion = told.get("output_tokens", told.get("completion_tokens")) or 0
    details = told.get("input_tokens_details") or told.get("prompt_tokens_details") or {}
    cached = details.get("cached_tokens") or 0

    def share(number: int, i: int) -> int:
        return number * (i + 1) // count - number * i // count

    return [Usage(share(prompt, i), share(completion, i), share(cached, i)) for i in range(count)]


def _openai_question(_: int, request: Request) -> dict[str, Any]:
    passage, labels = request.texts[1], list(request.labels)
    if set(labels) == YES_NO:
        return {"type": "predicate", "instructions": PREDICATE.format(passage=passage)}
    asked: dict[str, Any] = {"instructions": GRADE.format(passage=passage)}
    labels.reverse()
    if len(labels) <= MOST_LEVELS:
        return asked | {"type": "score", "levels": [{"label": label} for label in labels]}
    return asked | {"type": "choice", "choices": [{"value": label} for label in labels]}


def _openai_answers(data: Mapping[str, Any], _: Sequence[Request]) -> list[Probabilities | None]:
    return [_openai_answer(answer) for answer in data["answers"]]


def _openai_answer(answer: Mapping[str, Any]) -> Probabilities | None:
    kind = answer["type"]
    if kind == "refusal":
        return None
    if kind == "predicate":
        yes = answer["probability"]
        return {"yes": yes, "no": 1 - yes}
    name = "label" if kind == "score" else "value"
    return {row[name]: row["probability"] for row in answer["probabilities"]}


def _sglang_question(number: int, request: Request) -> dict[str, Any]:
    """The same question, with an id and under SGLang's names."""
    asked = _openai_question(number, request)
    kind = asked["type"]
    named = {
        "id": str(number),
        "type": "yes_no" if kind == "predicate" else kind,
        "question": asked["instructions"],
    }
    if kind == "score":
        named["levels"] = [level["label"] for level in asked["levels"]]
    if kind == "choice":
        named["options"] = [{"name": choice["value"]} for choice in asked["choices"]]
    return named


def _sglang_answers(
    data: Mapping[str, Any], requests: Sequence[Request]
) -> list[Probabilities | None]:
    """SGLang's answers go by the id of the question, and say what all labels hold together."""
    found: list[Probabilities | None] = []
    for i, request in enumerate(requests):
        answer = data["answers"][str(i)]
        values, mass = answer["probabilities"], answer["label_mass"]
        if answer["type"] == "score":
            levels = reversed(list(request.labels))
            values = {label: values[str(level)] for level, label in enumerate(levels)}
        found.append({label: value * mass for label, value in values.items()})
    return found


FORMS: Mapping[str, _Form] = {
    "openai": _Form(400, _openai_question, _openai_answers),
    "openrouter": _Form(200, _openai_question, _openai_answers),
    "sglang": _Form(64, _sglang_question, _sglang_answers),
    UNKNOWN: _Form(64, _openai_question, _openai_answers),
}
"""By the kind of server; vLLM's is that of OpenAI with up to 64 questions for most models."""
