"""How much may be sent in a minute."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from llmrank.backends.wrappers.caps import expected_usage
from llmrank.errors import InputError
from llmrank.request import Reply, Request

LENGTH = 60.0


@dataclass(slots=True)
class Sent:
    """A request that was sent: when, and how many tokens it counts for."""

    at: float
    tokens: int


class Minute:
    """Requests and tokens in any 60 seconds: never more than `rpm`, and `tpm` as they are counted.

    A request counts with the tokens expected of it (see `expected_usage`) until its answer tells
    the real number; where there is no answer the server may still have counted it, so the
    expected ones stay. One that is larger than `tpm` goes alone.
    """

    def __init__(
        self,
        *,
        rpm: int | None = None,
        tpm: int | None = None,
        count: Callable[[str], int] | None = None,
    ) -> None:
        for name, limit in (("rpm", rpm), ("tpm", tpm)):
            if limit is not None and limit < 1:
                raise InputError(f"{name} must be at least 1, not {limit}")
        if tpm is not None and count is None:
            raise InputError("a limit of tokens per minute needs a way to count them")
        self._rpm, self._tpm, self._count = rpm, tpm, count
        self._sent: deque[Sent] = deque()
        self._tokens = 0

    def expected(self, request: Request) -> int:
        """Tokens that a request counts for when it is sent; 0 where tokens have no limit."""
        if self._tpm is None or self._count is None:
            return 0
        return expected_usage(request, self._count).total

    def when(self, now: float, tokens: int) -> float:
        """The earliest time, `now` or later, at which a request of so many tokens may be sent."""
        while self._sent and self._sent[0].at + LENGTH <= now:
            self._tokens -= self._sent.popleft().tokens
        free = now
        if self._rpm is not None and len(self._sent) >= self._rpm:
            free = self._sent[len(self._sent) - self._rpm].at + LENGTH
        if self._tpm is not None:
            left = self._tokens
            for sent in self._sent:
                if left + tokens <= self._tpm:
                    break
                left -= sent.tokens
                free = max(free, sent.at + LENGTH)
        return free

    def send(self, now: float, tokens: int) -> Sent:
        """Note that a request is sent."""
        sent = Sent(now, tokens)
        self._sent.append(sent)
        self._tokens += tokens
        return sent

    def settle(self, sent: Sent, reply: Reply) -> None:
        """Count what a request really took in the place of what was expected."""
        used = reply.usage.total
        if self._tpm is None or (reply.error and not used):
            return
        if self._sent and sent.at >= self._sent[0].at:
            self._tokens += used - sent.tokens
        sent.tokens = used
