"""The one layer of retries."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence

import tenacity

from llmrank.backends.wrappers.base import Wrapper, side_by_side
from llmrank.errors import BackendError
from llmrank.request import Backend, Reply, Request


class Retrying(Wrapper):
    """The one layer of retries: asks again after a transient error, as long as the server wants.

    Retry-After is honoured up to `longest` seconds; without it the wait grows exponentially with
    jitter. Once `patience` requests in a row have used up their attempts, with no success between,
    the server is given up: one burst of failures among many requests in flight is not enough. It is
    given up too when `silence` seconds after a request first failed nothing has succeeded yet, as
    requests that wait for their turn would otherwise use up their attempts ever more slowly.
    """

    def __init__(
        self,
        inner: Backend,
        *,
        attempts: int = 6,
        longest: float = 60.0,
        patience: int = 4,
        first_wait: float = 0.5,
        silence: float = 300.0,
    ) -> None:
        super().__init__(inner)
        self._longest, self._patience, self._silence = longest, patience, silence
        self._lost_in_a_row = 0
        self._last_success = -math.inf
        self._backoff = tenacity.wait_random_exponential(multiplier=first_wait, max=longest)
        self._policy = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_result(lambda reply: reply.transient),
            stop=tenacity.stop_after_attempt(attempts),
            wait=self._wait,
            retry_error_callback=_last_reply,
        )

    async def answer(self, requests: Sequence[Request]) -> list[Reply]:
        """Replies in the order of the requests; an error that stayed is a reply with `error`."""
        return await side_by_side([self._one(request) for request in requests])

    async def _one(self, request: Request) -> Reply:
        reply = await self._attempt(request)
        if not reply.transient:
            return reply
        began = asyncio.get_running_loop().time()
        reply = await self._policy.copy()(self._attempt_again, request, began, [reply])
        if reply.transient:
            self._lost_in_a_row += 1
            if self._lost_in_a_row >= self._patience:
                times = f"{self._lost_in_a_row} requests in a row"
                raise BackendError(f"{self.identity} failed {times}; last: {reply.error}")
        return reply

    async def _attempt_again(self, request: Request, began: float, first: list[Reply]) -> Reply:
        """The policy's first attempt is the one already made, so that success costs no policy."""
        if first:
            return first.pop()
        reply = await self._attempt(request)
        since = max(began, self._last_success)
        silent = asyncio.get_running_loop().time() - since
        if reply.transient and silent > self._silence:
            raise BackendError(
                f"{self.identity} answered nothing but errors for {silent:.0f} s; "
                f"last: {reply.error}"
            )
        return reply

    async def _attempt(self, request: Request) -> Reply:
        (reply,) = await self.inner.answer([request])
        if not reply.transient:
            self._lost_in_a_row = 0
            self._last_success = asyncio.get_running_loop().time()
        return reply

    def _wait(self, state: tenacity.RetryCallState) -> float:
        reply = state.outcome.result() if state.outcome else None
        if reply is not None and reply.retry_after is not None:
            return min(float(reply.retry_after), self._longest)
        return float(self._backoff(state))


def _last_reply(state: tenacity.RetryCallState) -> Reply:
    if state.outcome is None:
        raise RuntimeError("no attempt was made")
    reply: Reply = state.outcome.result()
    return reply
