"""Answers from memory, and no question under way twice."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from llmrank.backends.wrappers.base import Wrapper
from llmrank.plan import Attend, Embed, Grade, Likelihood, Order, Pick, Write
from llmrank.request import Backend, Reply, Request


class Memory(Protocol):
    """Where answers are kept: see `llmrank.store.Journal`."""

    def get(self, key: str) -> Reply | None:
        """The reply stored under a key."""
        ...

    def put(self, items: Sequence[tuple[str, Mapping[str, object], Reply]]) -> None:
        """Store replies with what they were about."""
        ...


def about(request: Request) -> dict[str, object]:
    """What a request was about, in words that a person can search the journal for."""
    ask = request.ask
    told: dict[str, object] = {"ask": type(ask).__name__.lower(), "sample": request.sample}
    if isinstance(ask, Order | Pick | Attend):
        told |= {"query": ask.query.id, "docs": [doc.id for doc in ask.docs]}
    elif isinstance(ask, Grade | Likelihood):
        told |= {"query": ask.query.id, "docs": [ask.doc.id]}
    elif isinstance(ask, Write):
        told |= {"task": ask.task}
    elif isinstance(ask, Embed):
        told |= {"texts": len(ask.texts)}
    return told


class Cached(Wrapper):
    """Answers from memory where it can, remembers every answer, and never asks twice at once."""

    def __init__(self, inner: Backend, memory: Memory) -> None:
        super().__init__(inner)
        self._memory = memory
        # None stands for: whoever asked was cancelled, so ask yourself.
        self._asking: dict[str, asyncio.Future[Reply | None]] = {}

    async def answer(self, requests: Sequence[Request]) -> list[Reply]:
        """Replies in the order of the requests; those from memory are marked as reused."""
        keys = [request.key(self.identity) for request in requests]
        known: dict[str, Reply] = {}
        fresh: dict[str, Request] = {}
        waiting: dict[str, Request] = {}
        for key, request in zip(keys, requests, strict=True):
            if key in known or key in fresh or key in waiting:
                continue
            if (stored := self._memory.get(key)) is not None:
                known[key] = stored
            elif key in self._asking:
                waiting[key] = request
            else:
                fresh[key] = request
        pending = {key: self._asking[key] for key in waiting}
        known |= await self._ask(fresh)
        seen: set[str] = set()
        for key, request in waiting.items():
            # Shielded, as cancelling one who waits must not touch the answer of the others.
            reply = await asyncio.shield(pending[key])
            if reply is None:
                (reply,) = await self.answer([request])
            else:
                seen.add(key)
            known[key] = reply
        return [self._once(key, known[key], seen) for key in keys]

    @staticmethod
    def _once(key: str, reply: Reply, seen: set[str]) -> Reply:
        """A reply handed out a second time is a reused one."""
        again = key in seen and not (reply.error or reply.unasked)
        seen.add(key)
        return replace(reply, key=key, reused=reply.reused or again)

    async def _ask(self, fresh: Mapping[str, Request]) -> dict[str, Reply]:
        if not fresh:
            return {}
        loop = asyncio.get_running_loop()
        futures: dict[str, asyncio.Future[Reply | None]] = {
            key: loop.create_future() for key in fresh
        }
        self._asking |= futures
        try:
            replies = dict(zip(fresh, await self.inner.answer(list(fresh.values())), strict=True))
            answered = [
                (key, about(fresh[key]), reply)
                for key, reply in replies.items()
                if not (reply.error or reply.unasked)
            ]
            if answered:
                self._memory.put(answered)
            for key, reply in replies.items():
                futures[key].set_result(reply)
        except asyncio.CancelledError:
            for future in futures.values():
                future.set_result(None)
            raise
        except BaseException as error:
            for future in futures.values():
                future.set_exception(error)
                future.exception()  # Nobody may be waiting; the error is raised below anyway.
            raise
        finally:
            for key in fresh:
                del self._asking[key]
        return replies
