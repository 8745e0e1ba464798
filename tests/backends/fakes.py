"""Backends, clocks and servers for the tests of the wrappers."""

from __future__ import annotations

import asyncio
import gc
import selectors
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import Any, TypeVar

from llmrank.plan import Grade
from llmrank.request import Backend, Params, Reply, Request, Want
from llmrank.types import Document, Query

T = TypeVar("T")
QUERY = Query("q", "q")


def request(text: str, want: Want = "text", max_tokens: int = 1) -> Request:
    ask = Grade(QUERY, Document(text, text))
    return Request(ask=ask, want=want, prompt=text, params=Params(max_tokens=max_tokens))


Behaviour = Callable[[Request, int], Awaitable[Reply]]


async def echo(item: Request, _: int) -> Reply:
    await asyncio.sleep(0)
    return Reply(text=item.prompt)


class Fake:
    """Answers by a function of the request and how often it was asked before; keeps a log."""

    def __init__(
        self,
        behaviour: Behaviour = echo,
        *,
        identity: str = "fake",
        wants: Iterable[Want] = ("text",),
        batch: int = 1,
    ) -> None:
        self.behaviour, self.identity, self.batch = behaviour, identity, batch
        self.wants: frozenset[Want] = frozenset(wants)
        self.sent: Counter[str] = Counter()
        self.under_way = self.most = self.closed = self.calls = 0

    async def answer(self, requests: Sequence[Request]) -> list[Reply]:
        """What the behaviour says."""
        self.calls += 1
        before = [self.sent[item.prompt] for item in requests]
        self.sent.update(item.prompt for item in requests)
        self.under_way += len(requests)
        self.most = max(self.most, self.under_way)
        try:
            return [await self.behaviour(item, n) for item, n in zip(requests, before, strict=True)]
        finally:
            self.under_way -= len(requests)

    async def close(self) -> None:
        """Count."""
        self.closed += 1


async def slowly(item: Request, _: int) -> Reply:
    await asyncio.sleep(0.004)
    return Reply(text=item.prompt)


def transient(times: int, retry_after: float | None = None) -> Behaviour:
    """Fails with a passing error so many times for each request, then answers."""

    async def behaviour(item: Request, before: int) -> Reply:
        await asyncio.sleep(0)
        if before < times:
            return Reply(error=f"busy {before}", transient=True, retry_after=retry_after)
        return Reply(text=item.prompt)

    return behaviour


def quiet(
    work: Coroutine[Any, Any, T],
    loop: Callable[[], asyncio.AbstractEventLoop] | None = None,
) -> T:
    """Run on a fresh loop; no task may be left when the work ends and no error go unheard."""
    unheard: list[dict[str, Any]] = []

    async def main() -> T:
        asyncio.get_running_loop().set_exception_handler(lambda _, found: unheard.append(found))
        try:
            return await work
        finally:
            left = asyncio.all_tasks() - {asyncio.current_task()}
            assert not left, left

    try:
        with asyncio.Runner(loop_factory=loop) as runner:
            return runner.run(main())
    finally:
        gc.collect(1)
        assert not unheard, unheard


async def one(backend: Backend, text: str) -> Reply:
    (reply,) = await backend.answer([request(text)])
    return reply


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time is virtual: where it would wait, its clock jumps ahead.

    Give it to `quiet` as the loop. A wait that nothing will ever end is an error.
    """

    def __init__(self) -> None:
        self.now = 0.0
        super().__init__(_Jumping(self))

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self.now


class _Jumping(selectors.SelectSelector):
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """What is ready now; the time until the next timer passes at once."""
        if timeout is None:
            raise RuntimeError("everybody waits and nothing will happen")
        self._loop.now += timeout
        return super().select(0)
