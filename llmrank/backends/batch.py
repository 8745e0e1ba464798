"""The Batch API: requests go up as a file, answers come down as files, within a day at half price.

Everything that a request says and how its answer is read is as with `OpenAIBackend`: only the way
there and back is another.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

from llmrank.backends._answers import Failure
from llmrank.backends._batches import MOST_LINES, Batches, FileWire, Line
from llmrank.backends.openai import OpenAIBackend
from llmrank.errors import LlmrankError, SpecError
from llmrank.request import Reply, Request, Want

_TRIES = 2


class BatchBackend(OpenAIBackend):
    """A model behind a server with OpenAI's Batch API: all open requests at once, answers later.

    It has the identity of `openai:` with the same model, so either finds the other's answers in
    the journal. A request whose answer can still be had, because the batch expired or the server
    failed, is asked a second time in another batch.

    `timeout` (seconds) holds for every upload and download; `lines` is the most requests in one
    batch. Batches are looked at after 2 s and then ever more rarely, up to every `poll` seconds;
    what they do is logged at the level INFO. With `pilot` the first request of every kind is asked
    live, at the full price: what the server refuses then shows at once and not after hours. With
    `resume` the answers of batches that an earlier process made are waited for and used: their
    metadata tells which requests they hold. Cancelling leaves a batch running at the server. The
    other options are those of `OpenAIBackend`.
    """

    wants: frozenset[Want] = frozenset({"text", "labels", "vectors"})
    batch = MOST_LINES

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        timeout: float = 600.0,
        dialect: str = "",
        tokenizer: str = "",
        context: int = 0,
        poll: float = 60.0,
        lines: int = MOST_LINES,
        pilot: bool = True,
        resume: bool = True,
    ) -> None:
        if not (poll > 0 and 1 <= lines <= MOST_LINES):
            raise SpecError(f"a batch needs poll > 0 and lines from 1 to {MOST_LINES}")
        super().__init__(
            model,
            base_url=base_url,
            api_key=api_key,
            timeout=timeout,
            dialect=dialect,
            tokenizer=tokenizer,
            context=context,
        )
        self.wire: FileWire = FileWire(base_url, api_key, timeout, model)
        self.wire.dialect = self.learnt.dialect
        self._batches = Batches(self.wire, poll, lines)
        self._pilot, self._resume = pilot, resume
        self._piloted: set[tuple[Want, bool]] = set()

    async def answer(self, requests: Sequence[Request]) -> list[Reply]:
        """Replies in the order of the requests, once all batches have ended.

        Raises as `OpenAIBackend` does, and `BackendError` where the server takes no batch or cannot
        be reached any more: a batch under way then goes on, and its answers are taken up next time.
        """
        identity = self.identity
        keys = [request.key(identity) for request in requests]
        left, replies = dict(zip(keys, requests, strict=True)), dict[str, Reply]()
        for _ in range(_TRIES):
            replies |= await self._together(left)
            left = {key: request for key, request in left.items() if replies[key].transient}
            if not left:
                break
        return [replies[key] for key in keys]

    async def send(self, path: str, body: Mapping[str, object] | None = None) -> dict[str, Any]:
        """The answer to one HTTP call: from a batch while `answer` runs, else from the server."""
        turn = _TURN.get()
        if turn is None or body is None:
            return await super().send(path, body)
        return await turn.wave.send(turn.key, path, body)

    async def _together(self, requests: Mapping[str, Request]) -> dict[str, Reply]:
        """A reply to every request, by key; what is refused for all is raised."""
        found = await self._batches.earlier(requests) if self._resume else {}
        replies = await self._ahead({k: r for k, r in requests.items() if k not in found})
        rest = {key: request for key, request in requests.items() if key not in replies}
        wave = _Wave(found, len(rest))
        tasks = [asyncio.create_task(self._one_of(wave, *item)) for item in rest.items()]
        try:
            for task in tasks:
                task.add_done_callback(wave.done)
            while lines := await wave.lines():
                await self._batches.answer(lines)
            ended = await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for key, reply in zip(rest, ended, strict=True):
            if isinstance(reply, BaseException) and not isinstance(reply, LlmrankError):
                raise reply
            replies[key] = reply if isinstance(reply, Reply) else Reply(error=str(reply))
        refused = [error for error in ended if isinstance(error, LlmrankError)]
        # An answer that came must not be lost because another was refused.
        if refused and all(reply.error for reply in replies.values()):
            raise refused[0]
        return replies

    async def _one_of(self, wave: _Wave, key: str, request: Request) -> Reply:
        _TURN.set(_Turn(wave, key))
        return replace(await self._one(request), seconds=0.0)

    async def _ahead(self, requests: Mapping[str, Request]) -> dict[str, Reply]:
        """Live replies to the first request of every kind that was not tried yet."""
        replies = {}
        for key, request in requests.items() if self._pilot else ():
            kind = request.want, bool(request.messages)
            if kind in self._piloted:
                continue
            reply = await self._one(request)
            self._piloted.add(kind)
            if not reply.transient:
                replies[key] = reply
        return replies


class _Wave:
    """Requests answered together: each runs until it needs the server, then waits for the rest.

    `found` are answers that are there already; each is used once.
    """

    def __init__(self, found: dict[str, dict[str, Any]], count: int) -> None:
        self._found, self._open = found, count
        self._waiting: dict[str, Line] = {}
        self._moved = asyncio.Event()

    async def send(self, key: str, path: str, body: Mapping[str, object]) -> dict[str, Any]:
        """The answer to what a request sends."""
        if (found := self._found.pop(key, None)) is not None:
            return found
        line = {"custom_id": key, "method": "POST", "url": f"/v1{path}", "body": body}
        try:
            content = json.dumps(line, ensure_ascii=False).encode() + b"\n"
        except UnicodeEncodeError:
            raise Failure("the text holds lone surrogates, which cannot be sent") from None
        texts = body.get("input")
        size = len(texts) if isinstance(texts, list) else 1
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[key] = Line(path, content, size, answer)
        self._moved.set()
        return await answer

    def done(self, _: object) -> None:
        """A request has come to its end."""
        self._open -= 1
        self._moved.set()

    async def lines(self) -> dict[str, Line]:
        """What the requests send when all that have not ended wait; empty when all have ended."""
        while len(self._waiting) < self._open:
            self._moved.clear()
            await self._moved.wait()
        taken, self._waiting = self._waiting, {}
        return taken


@dataclass(frozen=True, slots=True)
class _Turn:
    """Whose request a task is working on."""

    wave: _Wave
    key: str


_TURN: ContextVar[_Turn | None] = ContextVar("llmrank_batch_turn", default=None)
