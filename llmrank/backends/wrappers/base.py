"""What the wrappers have in common."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from llmrank.request import Backend, Reply, Request, Want

T = TypeVar("T")


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


async def side_by_side(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """All results in order; the first error cancels the rest and is raised as it is."""
    if len(work) == 1:
        return [await work[0]]
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in work]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]
