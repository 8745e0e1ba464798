"""Limits of the server: how many requests at once, how much in a minute, when to leave it alone."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from llmrank.backends.wrappers.base import Wrapper, side_by_side
from llmrank.backends.wrappers.minute import Minute, Sent
from llmrank.backends.wrappers.window import Window
from llmrank.errors import InputError
from llmrank.request import Backend, Reply, Request

FIRST_PAUSE, LONGEST_OWN_PAUSE = 0.5, 5.0


class _Pass(NamedTuple):
    """The leave to send one request: its number, and what the minute has of it."""

    number: int
    sent: Sent | None


class Limited(Wrapper):
    """Sends what the server takes, and lets the rest wait: first come, first served.

    At most `in_flight` requests are under way, down to `least` where the server throttles (see
    `Window`); `least=in_flight` fixes the number. `minute` limits requests and tokens in any 60
    seconds. While the server asks to be left alone (Retry-After, at most `longest` seconds) nobody
    sends; where it refuses the only request under way without saying for how long, nobody does for
    0.5 s, then 1 s, up to 5 s. Times are those of the event loop.
    """

    def __init__(
        self,
        inner: Backend,
        in_flight: int,
        *,
        least: int = 1,
        minute: Minute | None = None,
        longest: float = 60.0,
    ) -> None:
        super().__init__(inner)
        if not 1 <= least <= in_flight:
            raise InputError(f"between {least} and {in_flight} requests at once is not possible")
        self._window, self._minute, self._longest = Window(least, in_flight), minute, longest
        self._waiting: deque[tuple[asyncio.Future[_Pass], int]] = deque()
        self._under_way = self._newest = self._pauses = 0
        self._closed_until = 0.0
        self._alarm: asyncio.TimerHandle | None = None

    @property
    def at_once(self) -> int:
        """How many requests may be under way now."""
        return self._window.size

    async def answer(self, requests: Sequence[Request]) -> list[Reply]:
        """Replies in the order of the requests."""
        return await side_by_side([self._one(request) for request in requests])

    async def _one(self, request: Request) -> Reply:
        leave = await self._turn(self._minute.expected(request) if self._minute else 0)
        try:
            (reply,) = await self.inner.answer([request])
            self._heed(leave, reply)
        finally:
            self._under_way -= 1
            self._let_in()
        return reply

    async def _turn(self, tokens: int) -> _Pass:
        """Wait until a request of so many tokens may be sent."""
        loop = asyncio.get_running_loop()
        mine: asyncio.Future[_Pass] = loop.create_future()
        self._waiting.append((mine, tokens))
        if len(self._waiting) == 1:
            self._let_in()
        try:
            return await mine
        except asyncio.CancelledError:
            if not mine.cancelled():
                self._under_way -= 1
            self._let_in()
            raise

    def _let_in(self) -> None:
        """Let in those whose turn it is, and see to being called again where time is the limit."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        while self._waiting:
            future, tokens = self._waiting[0]
            if not future.done():
                if self._under_way >= self._window.size:
                    return
                loop = future.get_loop()
                now, free = loop.time(), self._closed_until
                if self._minute is not None:
                    free = max(free, self._minute.when(now, tokens))
                if free > now:
                    self._alarm = loop.call_at(free, self._let_in)
                    return
                self._under_way += 1
                self._newest += 1
                sent = self._minute.send(now, tokens) if self._minute is not None else None
                future.set_result(_Pass(self._newest, sent))
            self._waiting.popleft()

    def _heed(self, leave: _Pass, reply: Reply) -> None:
        """Learn from a reply; the request that it answers still counts as under way."""
        now = asyncio.get_running_loop().time()
        if leave.sent is not None and self._minute is not None:
            self._minute.settle(leave.sent, reply)
        if reply.retry_after is not None:
            pause = min(reply.retry_after, self._longest)
            self._closed_until = max(self._closed_until, now + pause)
        taken = self._under_way - 1
        if reply.error and (reply.throttled or reply.retry_after is not None):
            self._window.refused(leave.number, self._newest, taken)
            if reply.retry_after is None and not taken:
                pause = min(FIRST_PAUSE * 2**self._pauses, LONGEST_OWN_PAUSE)
                self._closed_until = max(self._closed_until, now + pause)
                self._pauses += pause < LONGEST_OWN_PAUSE
        elif not reply.transient:
            self._pauses = 0
            if self._under_way >= self._window.size:
                self._window.accepted()
