"""A second request for an answer that is long in coming."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from statistics import median

from llmrank.backends.wrappers.base import Wrapper, side_by_side
from llmrank.errors import InputError
from llmrank.request import Backend, Reply, Request

_ENOUGH, _LATEST = 20, 100
"""Answers to know the usual time by: at least, and at most, the latest ones."""

_RENEWED = 10


class Hedged(Wrapper):
    """Asks a second time where an answer takes `late` times the median; the first answer counts.

    For servers where a few answers hang: a round of many asks waits for its slowest. At most
    `share` of all requests are sent twice, so where answers are slow for good reasons, as long
    texts are, little is spent. The one that is not needed is cancelled, and the server may charge
    for it. A reply that is an error ends the wait only where no other is under way.

    (Hedged requests: Dean and Barroso, The Tail at Scale, 2013.)
    """

    def __init__(self, inner: Backend, *, share: float = 0.05, late: float = 3.0) -> None:
        super().__init__(inner)
        if not (0 <= share <= 1 and late >= 1):
            raise InputError(f"cannot ask again {share:g} of the requests at {late:g} x the median")
        self._share, self._late = share, late
        self._asked = self._again = 0
        self._took: deque[float] = deque(maxlen=_LATEST)
        self._usual = 0.0

    async def answer(self, requests: Sequence[Request]) -> list[Reply]:
        """Replies in the order of the requests."""
        return await side_by_side([self._one(request) for request in requests])

    async def _one(self, request: Request) -> Reply:
        self._asked += 1
        loop = asyncio.get_running_loop()
        began = loop.time()
        tasks = {loop.create_task(self._ask(request))}
        try:
            if len(self._took) >= _ENOUGH:
                done, _ = await asyncio.wait(tasks, timeout=self._late * self._usual)
                if not done and self._again < self._share * self._asked:
                    self._again += 1
                    tasks.add(loop.create_task(self._ask(request)))
            reply = await _first(tasks)
        finally:
            await _end(tasks)
        if not reply.error:
            self._learn(loop.time() - began)
        return reply

    async def _ask(self, request: Request) -> Reply:
        (reply,) = await self.inner.answer([request])
        return reply

    def _learn(self, took: float) -> None:
        self._took.append(took)
        if self._asked % _RENEWED == 0 or not self._usual:
            self._usual = median(self._took)


async def _first(tasks: set[asyncio.Task[Reply]]) -> Reply:
    """The first reply that is none of an error, or the last one."""
    pending = tasks
    while True:
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        replies = [task.result() for task in done]
        for reply in replies:
            if not reply.error or not pending:
                return reply


async def _end(tasks: set[asyncio.Task[Reply]]) -> None:
    """Cancel what is under way and wait until it has ended."""
    for task in tasks:
        task.cancel()
    if pending := [task for task in tasks if not task.done()]:
        await asyncio.wait(pending)
    for task in tasks:
        if not task.cancelled():
            task.exception()  # Heard of, also where the other one was first.
