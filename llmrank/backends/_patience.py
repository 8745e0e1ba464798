"""Asking again after a passing failure, for calls that carry many requests at once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import tenacity

from llmrank.backends._answers import Failure

T = TypeVar("T")

FIRST_WAIT, LONGEST_WAIT = 0.5, 60.0

_backoff = tenacity.wait_random_exponential(multiplier=FIRST_WAIT, max=LONGEST_WAIT)


async def patiently(call: Callable[[], Awaitable[T]], attempts: int = 6) -> T:
    """What a call returns, made again after transient failures as long as the server wants.

    The last failure is raised once the attempts are used up, any other at once.
    """

    # Tenacity awaits only what is plainly a coroutine function.
    async def made() -> T:
        return await call()

    policy = tenacity.AsyncRetrying(
        retry=tenacity.retry_if_exception(_passes),
        stop=tenacity.stop_after_attempt(attempts),
        wait=_wait,
        reraise=True,
    )
    return await policy(made)


def _passes(error: BaseException) -> bool:
    return isinstance(error, Failure) and error.transient


def _wait(state: tenacity.RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, Failure) and error.retry_after is not None:
        return min(error.retry_after, LONGEST_WAIT)
    return float(_backoff(state))
