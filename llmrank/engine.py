"""The engine: drives plans against a backend. The only scheduler.

Two drivers share one frontier of open asks. The concurrent one keeps many single requests in flight
(servers); the lock-step one answers them in full batches (a model in this process). A plan gets the
same answers from both, so it returns the same result.
"""

from __future__ import annotations

import asyncio
import heapq
import os
import threading
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from typing import Any, Generic, Protocol, TypeVar

from llmrank.errors import TooLong
from llmrank.plan import Answer, Ask, Drive, Plan, Ticket
from llmrank.request import Backend, Reply, Request
from llmrank.types import Status, Tally, Usage

K = TypeVar("K")
T = TypeVar("T")
Finished = Callable[[K, T, Tally], None]

WIND_UP = 5.0
"""Seconds that interrupted work has to come to its end."""


class Prompts(Protocol):
    """What turns asks into requests and replies into answers: see `llmrank.prompts.PromptSet`."""

    @property
    def waits(self) -> bool:
        """Whether rendering may wait for a server that counts tokens."""
        ...

    def render(self, item: Ask[Any]) -> Request:
        """The request for an ask; `TooLong` where it cannot fit the model."""
        ...

    def parse(self, request: Request, reply: Reply) -> Answer[Any]:
        """The typed outcome of a reply."""
        ...


class _Count:
    """What some asks have cost so far."""

    def __init__(self) -> None:
        self._outcomes: Counter[Status] = Counter()
        self._usage = self._reused_usage = Usage()
        self._reused = self._cut = self._failures = 0
        self._rounds: set[int] = set()
        self._problems: dict[Status, str] = {}

    def add(self, round: int, answer: Answer[Any]) -> None:
        self._rounds.add(round)
        self._outcomes[answer.status] += 1
        self._cut += answer.cut
        if answer.value is None and answer.problem:
            self._problems.setdefault(answer.status, answer.problem)
        self._failures += answer.value is None and answer.status is not Status.UNASKED
        self._reused += answer.reused
        if answer.reused:
            self._reused_usage += answer.usage
        else:
            self._usage += answer.usage

    @property
    def tally(self) -> Tally:
        outcomes = {status: self._outcomes[status] for status in Status if self._outcomes[status]}
        return Tally(
            outcomes,
            len(self._rounds),
            self._reused,
            self._cut,
            self._usage,
            self._failures,
            self._reused_usage,
            problems=self._problems,
        )


class _Running(Generic[K, T]):
    """One plan under way, and what it and its stages have cost so far."""

    def __init__(self, number: int, key: K, plan: Plan[T]) -> None:
        self.number, self.key = number, key
        self.drive = Drive(plan)
        self._whole = _Count()
        self._stages: dict[str, _Count] = {}

    def count(self, ticket: Ticket, answer: Answer[Any]) -> None:
        self._whole.add(ticket.round, answer)
        if stage := ticket.ask.stage:
            self._stages.setdefault(stage, _Count()).add(ticket.round, answer)

    @property
    def tally(self) -> Tally:
        """The cost; rounds are those of the plan, which are at least the stages' together."""
        stages = {stage: count.tally for stage, count in self._stages.items()}
        return replace(self._whole.tally, rounds=self.drive.rounds, stages=stages)


class _Frontier(Generic[K, T]):
    """The open asks of all plans under way, earlier plans first.

    Plans are taken in only as long as there are fewer than `enough` asks open, so memory depends
    on the backend's appetite and not on the number of plans.
    """

    def __init__(
        self, plans: Iterable[tuple[K, Plan[T]]], finished: Finished[K, T], enough: int
    ) -> None:
        self._source: Iterator[tuple[int, tuple[K, Plan[T]]]] = iter(enumerate(plans))
        self._finished, self._enough = finished, enough
        self._open: list[tuple[int, int, Ticket, _Running[K, T]]] = []
        self._opened = 0
        self._exhausted = False
        self.waiting = 0

    @property
    def open(self) -> int:
        """How many asks nobody has taken yet."""
        return len(self._open)

    def take(self, most: int) -> list[tuple[Ticket, _Running[K, T]]]:
        """Up to `most` open asks; they count as waiting until they are accepted."""
        self._admit()
        taken = [heapq.heappop(self._open)[2:] for _ in range(min(most, len(self._open)))]
        self.waiting += len(taken)
        return taken

    def accept(self, ticket: Ticket, running: _Running[K, T], answer: Answer[Any]) -> None:
        """Take the answer of an ask."""
        self.waiting -= 1
        running.count(ticket, answer)
        self._add(running, running.drive.answer(ticket, answer))

    def _admit(self) -> None:
        while not self._exhausted and len(self._open) < self._enough:
            found = next(self._source, None)
            if found is None:
                self._exhausted = True
                return
            number, (key, plan) = found
            running = _Running(number, key, plan)
            self._add(running, running.drive.start())

    def _add(self, running: _Running[K, T], tickets: Sequence[Ticket]) -> None:
        for ticket in tickets:
            self._opened += 1
            heapq.heappush(self._open, (running.number, self._opened, ticket, running))
        if running.drive.done:
            self._finished(running.key, running.drive.result, running.tally)


class Engine:
    """Runs plans against a backend, with the prompts that word their asks.

    `in_flight` is how many requests the concurrent driver keeps under way.
    """

    def __init__(self, backend: Backend, prompts: Prompts, *, in_flight: int = 32) -> None:
        self.backend, self.prompts, self.in_flight = backend, prompts, in_flight

    async def run(self, plans: Iterable[tuple[K, Plan[T]]], finished: Finished[K, T]) -> None:
        """Run keyed plans by the driver that suits the backend.

        `finished` is called with key, result and tally as soon as a plan ends, in any order.
        """
        driver = self.run_lock_step if self.backend.batch > 1 else self.run_concurrently
        await driver(plans, finished)

    async def run_lock_step(
        self, plans: Iterable[tuple[K, Plan[T]]], finished: Finished[K, T]
    ) -> None:
        """Answer open asks in full batches, one batch after another."""
        size = max(self.backend.batch, self.in_flight)
        frontier = _Frontier(plans, finished, enough=2 * size)
        while taken := frontier.take(size):
            # A backend that computes in this process never waits, so interruptions arrive here.
            await asyncio.sleep(0)
            answers = await self._answer([ticket.ask for ticket, _ in taken])
            for (ticket, running), answer in zip(taken, answers, strict=True):
                frontier.accept(ticket, running, answer)

    async def run_concurrently(
        self, plans: Iterable[tuple[K, Plan[T]]], finished: Finished[K, T]
    ) -> None:
        """Keep up to `in_flight` single asks under way until every plan has ended."""
        frontier = _Frontier(plans, finished, enough=2 * self.in_flight)
        idle: deque[asyncio.Future[None]] = deque()

        async def work() -> None:
            while (taken := frontier.take(1)) or frontier.waiting:
                if not taken:
                    idle.append(asyncio.get_running_loop().create_future())
                    await idle[-1]
                    continue
                ((ticket, running),) = taken
                (answer,) = await self._answer([ticket.ask])
                frontier.accept(ticket, running, answer)
                # As many idle workers as there are asks, or all where nothing is left to wait for:
                # waking all each time would take time that grows with their square.
                ended = not (frontier.open or frontier.waiting)
                for _ in range(len(idle) if ended else min(len(idle), frontier.open)):
                    waiting = idle.popleft()
                    if not waiting.done():
                        waiting.set_result(None)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self.in_flight):
                    group.create_task(work())
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def _answer(self, asks: Sequence[Ask[Any]]) -> list[Answer[Any]]:
        rendered = [await self._rendered(ask) for ask in asks]
        requests = [request for request in rendered if isinstance(request, Request)]
        replies = await self.backend.answer(requests) if requests else []
        answers = iter([self.prompts.parse(*pair) for pair in zip(requests, replies, strict=True)])
        return [next(answers) if isinstance(found, Request) else found for found in rendered]

    async def _rendered(self, item: Ask[Any]) -> Request | Answer[Any]:
        """The request for an ask, or the answer where there can be none."""
        try:
            if self.prompts.waits:
                # Other answers must not wait while a server counts the tokens of this one.
                return await asyncio.to_thread(self.prompts.render, item)
            return self.prompts.render(item)
        except TooLong as error:
            return Answer(status=Status.FAILED, problem=str(error))


_THREAD = "llmrank-loop"


class _Loop:
    """One event loop in a thread of its own, where all of llmrank's asynchronous work runs.

    Connections then outlive a call, ordinary code, notebooks and async servers share one way in,
    and a model that computes in this process does not hold up the caller's own loop.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._process = 0

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Start a coroutine on the loop, from any thread but its own."""
        with self._lock:
            if self._loop is None or self._process != os.getpid():
                self._loop, self._process = asyncio.new_event_loop(), os.getpid()
                threading.Thread(
                    target=_run_forever, args=(self._loop,), name=_THREAD, daemon=True
                ).start()
            loop = self._loop
        return asyncio.run_coroutine_threadsafe(work, loop)


def _run_forever(loop: asyncio.AbstractEventLoop) -> None:
    while not loop.is_closed():
        # `sys.exit` in a callback stops the loop; it goes on, so that the caller is told.
        with suppress(SystemExit, KeyboardInterrupt):
            loop.run_forever()


_LOOP = _Loop()


def _check_thread(work: Coroutine[Any, Any, T]) -> None:
    """The loop's own thread would wait for itself for ever."""
    if threading.current_thread().name == _THREAD:
        work.close()
        raise RuntimeError("llmrank was called from one of its own callbacks; call it after them")


def run_sync(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end from ordinary code, also where an event loop is running already.

    Interrupting the wait cancels the work, and gives it a few seconds to wind up.
    """
    _check_thread(work)
    ended = threading.Event()

    async def tracked() -> T:
        try:
            return await work
        finally:
            ended.set()

    future = _LOOP.submit(tracked())
    try:
        return future.result()
    except BaseException:
        # Whoever is told of the interruption may close what the work still uses.
        if future.cancel():
            ended.wait(WIND_UP)
        raise


async def run_async(work: Coroutine[Any, Any, T]) -> T:
    """Await a coroutine that runs on llmrank's own loop; cancelling the wait cancels the work."""
    _check_thread(work)
    return await asyncio.wrap_future(_LOOP.submit(work))
