"""Limits of one invocation: calls, tokens, money and time."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llmrank.backends.wrappers.base import Wrapper
from llmrank.errors import InputError
from llmrank.request import Backend, Reply, Request
from llmrank.types import Usage


@dataclass(frozen=True, slots=True)
class Caps:
    """Limits of one invocation. None is no limit; `seconds` is wall time from the first request.

    `calls` counts requests but not their retries, and is exact. For tokens and money what is in
    flight counts with its limit for the reply and a count for the prompt; where that count is an
    estimate (see `llmrank.backends.tokens`), so is the cap. Prices are in money per million tokens.
    """

    calls: int | None = None
    tokens: int | None = None
    cost: float | None = None
    seconds: float | None = None
    prompt_price: float = 0.0
    completion_price: float = 0.0

    def __post_init__(self) -> None:
        for price in (self.prompt_price, self.completion_price):
            if not 0 <= price < math.inf:
                raise InputError(f"a price must be 0 or more, not {price}")
        for limit in (self.calls, self.tokens, self.cost, self.seconds):
            if limit is not None and not limit >= 0:
                raise InputError(f"a cap must be 0 or more, not {limit}")

    def price(self, usage: Usage) -> float:
        """What an amount of tokens costs."""
        prompt, completion = usage.prompt_tokens, usage.completion_tokens
        return (prompt * self.prompt_price + completion * self.completion_price) / 1e6


class Capped(Wrapper):
    """Stops asking when a cap is reached; what is not asked is answered as unasked."""

    def __init__(self, inner: Backend, caps: Caps, count: Callable[[str], int]) -> None:
        super().__init__(inner)
        self._caps, self._count = caps, count
        self._calls = 0
        self._spent = Usage()
        self._started: float | None = None

    async def answer(self, requests: Sequence[Request]) -> list[Reply]:
        """Replies in the order of the requests; those beyond a cap are unasked."""
        reserved: list[tuple[Request, Usage]] = []
        reason = ""
        for request in requests:
            expected = self._expected(request)
            reason = self._reason(expected)
            if reason:
                break
            self._calls += 1
            self._spent += expected
            reserved.append((request, expected))
        replies = await self._within_time([request for request, _ in reserved])
        for (_, expected), reply in zip(reserved, replies, strict=True):
            self._spent = _settled(self._spent, expected, reply.usage)
        missing = len(requests) - len(replies)
        return [*replies, *(Reply(unasked=reason) for _ in range(missing))]

    async def _within_time(self, requests: Sequence[Request]) -> list[Reply]:
        if not requests:
            return []
        if self._caps.seconds is None:
            return await self.inner.answer(requests)
        deadline = asyncio.timeout(self._remaining())
        try:
            async with deadline:
                return await self.inner.answer(requests)
        except TimeoutError:
            if not deadline.expired():
                raise
            return [Reply(unasked=f"the deadline of {self._caps.seconds:g} s")] * len(requests)

    def _remaining(self) -> float:
        now = asyncio.get_running_loop().time()
        if self._started is None:
            self._started = now
        return (self._caps.seconds or 0.0) - (now - self._started)

    def _reason(self, expected: Usage) -> str:
        caps, after = self._caps, self._spent + expected
        if caps.calls is not None and self._calls >= caps.calls:
            return f"the cap of {caps.calls} calls"
        if caps.tokens is not None and after.total > caps.tokens:
            return f"the cap of {caps.tokens} tokens"
        if caps.cost is not None and caps.price(after) > caps.cost:
            return f"the cap of {caps.cost:g} in money"
        if caps.seconds is not None and self._remaining() <= 0:
            return f"the deadline of {caps.seconds:g} s"
        return ""

    def _expected(self, request: Request) -> Usage:
        if self._caps.tokens is None and self._caps.cost is None:
            return Usage()
        return expected_usage(request, self._count)


def expected_usage(request: Request, count: Callable[[str], int]) -> Usage:
    """Tokens of a request before it is sent: the prompt counted, the reply at its limit."""
    texts = [turn.content for turn in request.messages] + [request.prompt, request.target]
    # Four tokens a turn is what chat formats add around a message.
    prompt = sum(count(text) for text in [*texts, *request.texts] if text)
    prompt += 4 * len(request.messages)
    return Usage(prompt, request.params.max_tokens if request.want == "text" else 0)


def _settled(spent: Usage, expected: Usage, actual: Usage) -> Usage:
    return Usage(
        spent.prompt_tokens - expected.prompt_tokens + actual.prompt_tokens,
        spent.completion_tokens - expected.completion_tokens + actual.completion_tokens,
    )
