"""A count of what was really sent."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from llmrank.backends.wrappers.base import Wrapper
from llmrank.request import Backend, Reply, Request
from llmrank.types import Usage


@dataclass
class Meter:
    """What was really sent: requests, those that failed, tokens and model seconds.

    `cancelled` are those whose answer was not waited for, at a deadline say: they are among the
    requests, and the server may have charged for them, but their tokens are not known.
    """

    requests: int = 0
    errors: int = 0
    cancelled: int = 0
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
        meter = self.meter
        try:
            replies = await self.inner.answer(requests)
        except asyncio.CancelledError:
            meter.requests += len(requests)
            meter.cancelled += len(requests)
            raise
        meter.requests += len(replies)
        for reply in replies:
            meter.errors += bool(reply.error)
            meter.usage += reply.usage
            meter.seconds += reply.seconds
            if reply.model:
                meter.models.add(reply.model)
        return replies
