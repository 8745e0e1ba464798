"""A count of what was really sent."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from llmrank.backends.wrappers.base import Wrapper
from llmrank.request import Backend, Reply, Request
from llmrank.types import Usage


@dataclass
class Meter:
    """What was really sent: requests, tokens, model seconds, and by kind the requests that failed.

    `cancelled` are those whose answer was not waited for, at a deadline say: they are among the
    requests, and the server may have charged for them, but their tokens are not known.
    """

    requests: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    cancelled: int = 0
    usage: Usage = field(default_factory=Usage)
    seconds: float = 0.0
    models: set[str] = field(default_factory=set)

    @property
    def errors(self) -> int:
        """How many requests failed, those put again included."""
        return self.faults.total()


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
            if reply.error:
                meter.faults[reply.fault or "other"] += 1
            meter.usage += reply.usage
            meter.seconds += reply.seconds
            if reply.model:
                meter.models.add(reply.model)
        return replies
