"""What every backend needs, each as a wrapper around one: cache, caps, retries, limits, a meter."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

import tenacity

from llmrank.errors import BackendError, CapabilityError, InputError
from llmrank.plan import Attend, Embed, Grade, Likelihood, Order, Pick, Write
from llmrank.request import Backend, Reply, Request, Want
from llmrank.types import Usage

T = TypeVar("T")


class Memory(Protocol):
    """Where answers are kept: see `llmrank.store.Journal`."""

    def get(self, key: str) -> Reply | None:
        """The reply stored under a key."""
        ...

    def put(self, items: Sequence[tuple[str, Mapping[str, object], Reply]]) -> None:
        """Store replies with what they were about."""
        ...


class Wrapper:
    """A backend that passes everything on to another."""

    def __init__(self, inner: Backend) -> None:
        self.inner = inner

    @property
    def identity(self) -> str:
        """Name of the model inside."""
        return self.inner.identity

    @property
    def wants(self) -> frozenset[Want]:
        """What the backend inside can be asked for."""
        return self.inner.wants

    @property
    def batch(self) -> int:
        """Requests per call that suit the backend inside."""
        return self.inner.batch

    async def answer(self, requests: Sequence[Request]) -> list[Reply]:
        """Replies in the order of the requests."""
        return await self.inner.answer(requests)

    async def close(self) -> None:
        """Close the backend inside."""
        await self.inner.close()


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
        if self._started is None:
            self._started = time.monotonic()
        return (self._caps.seconds or 0.0) - (time.monotonic() - self._started)

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


async def _side_by_side(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """All results in order; the first error cancels the rest and is raised as it is."""
    if len(work) == 1:
        return [await work[0]]
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in work]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


class Limited(Wrapper):
    """Keeps at most `in_flight` requests under way."""

    def __init__(self, inner: Backend, in_flight: int) -> None:
        super().__init__(inner)
        self._gate = asyncio.Semaphore(in_flight)

    async def answer(self, requests: Sequence[Request]) -> list[Reply]:
        """Replies in the order of the requests."""
        return await _side_by_side([self._one(request) for request in requests])

    async def _one(self, request: Request) -> Reply:
        async with self._gate:
            (reply,) = await self.inner.answer([request])
        return reply


class Retrying(Wrapper):
    """The one layer of retries: asks again after a transient error, as long as the server wants.

    Retry-After is honoured up to `longest` seconds; without it the wait grows exponentially with
    jitter. Once `patience` requests in a row have used up their attempts, with no success between,
    the server is given up: one burst of failures among many requests in flight is not enough.
    """

    def __init__(
        self,
        inner: Backend,
        *,
        attempts: int = 6,
        longest: float = 60.0,
        patience: int = 4,
        first_wait: float = 0.5,
    ) -> None:
        super().__init__(inner)
        self._longest, self._patience = longest, patience
        self._lost_in_a_row = 0
        self._backoff = tenacity.wait_random_exponential(multiplier=first_wait, max=longest)
        self._policy = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_result(lambda reply: reply.transient),
            stop=tenacity.stop_after_attempt(attempts),
            wait=self._wait,
            retry_error_callback=_last_reply,
        )

    async def answer(self, requests: Sequence[Request]) -> list[Reply]:
        """Replies in the order of the requests; an error that stayed is a reply with `error`."""
        return await _side_by_side([self._one(request) for request in requests])

    async def _one(self, request: Request) -> Reply:
        reply = await self._attempt(request)
        if not reply.transient:
            return reply
        reply = await self._policy.copy()(self._attempt_again, request, [reply])
        if reply.transient:
            self._lost_in_a_row += 1
            if self._lost_in_a_row >= self._patience:
                times = f"{self._lost_in_a_row} requests in a row"
                raise BackendError(f"{self.identity} failed {times}; last: {reply.error}")
        return reply

    async def _attempt_again(self, request: Request, first: list[Reply]) -> Reply:
        """The policy's first attempt is the one already made, so that success costs no policy."""
        return first.pop() if first else await self._attempt(request)

    async def _attempt(self, request: Request) -> Reply:
        (reply,) = await self.inner.answer([request])
        if not reply.transient:
            self._lost_in_a_row = 0
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


@dataclass
class Meter:
    """What was really sent: requests, those that failed, tokens and model seconds."""

    requests: int = 0
    errors: int = 0
    usage: Usage = field(default_factory=Usage)
    seconds: float = 0.0
    models: set[str] = field(default_factory=set)


class Metered(Wrapper):
    """Counts what passes; stands closest to the backend, so retries are counted too."""

    def __init__(self, inner: Backend, meter: Meter) -> None:
        super().__init__(inner)
        self.meter = meter

    async def answer(self, requests: Sequence[Request]) -> list[Reply]:
        """Replies in the order of the requests."""
        replies = await self.inner.answer(requests)
        meter = self.meter
        meter.requests += len(replies)
        for reply in replies:
            meter.errors += bool(reply.error)
            meter.usage += reply.usage
            meter.seconds += reply.seconds
            if reply.model:
                meter.models.add(reply.model)
        return replies


class Routed:
    """Several backends as one: each want goes to the backend given for it."""

    def __init__(self, routes: Mapping[Want, Backend]) -> None:
        self._routes = dict(routes)

    @property
    def identity(self) -> str:
        """Names of the backends, in order of what they are wanted for."""
        return "+".join(self._routes[want].identity for want in sorted(self._routes))

    @property
    def wants(self) -> frozenset[Want]:
        """What any of the backends can be asked for."""
        return frozenset(self._routes)

    @property
    def batch(self) -> int:
        """The largest batch that one of the backends likes."""
        return max(backend.batch for backend in self._routes.values())

    async def answer(self, requests: Sequence[Request]) -> list[Reply]:
        """Replies in the order of the requests."""
        for missing in {request.want for request in requests} - self.wants:
            can = ", ".join(sorted(self.wants))
            raise CapabilityError(f"{self.identity} cannot give {missing}; it gives: {can}")
        replies: dict[int, Reply] = {}
        for want, backend in self._routes.items():
            chosen = [i for i, request in enumerate(requests) if request.want == want]
            if chosen:
                done = await backend.answer([requests[i] for i in chosen])
                replies.update(zip(chosen, done, strict=True))
        return [replies[i] for i in range(len(requests))]

    async def close(self) -> None:
        """Close every backend."""
        for backend in {id(b): b for b in self._routes.values()}.values():
            await backend.close()
