"""Several servers of one model as one backend."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Generic, TypeVar

from llmrank.backends.tokens import Served
from llmrank.backends.wrappers.base import side_by_side
from llmrank.errors import InputError
from llmrank.request import Backend, Model, Reply, Request, Tokenizer, Want

B = TypeVar("B", bound=Backend)


class _Member(Generic[B]):
    """One server: what it has to do, and how it fared lately."""

    def __init__(self, backend: B) -> None:
        self.backend = backend
        self.under_way = self.failed = 0
        self.newest = self.last_before_failure = 0
        self.rests_until = 0.0
        self.error = ""

    async def answer(self, request: Request) -> tuple[int, Reply]:
        """The reply, and the number of the request among those this member was sent."""
        self.under_way += 1
        self.newest += 1
        number = self.newest
        try:
            (reply,) = await self.backend.answer([request])
        finally:
            self.under_way -= 1
        return number, reply


class Pool(Generic[B]):
    """Backends with the same model; each request goes to the one with the fewest under way.

    One that fails `patience` times in a row, what was under way at the same time counting once, is
    set aside for `rest` seconds and then tried with a single request. While all are set aside the
    one that has rested longest is asked, and an error names every member.

    The identity is the model's name without any member's address: the caller vouches that all
    members run the same weights. The journal then knows an answer whoever gave it, and still does
    when addresses change, as on a cluster; it does not know answers of a server asked alone.
    """

    batch = 1

    def __init__(self, members: Sequence[B], *, patience: int = 3, rest: float = 30.0) -> None:
        names = {_name(member.identity) for member in members}
        if len(names) != 1:
            found = ", ".join(sorted(names)) or "none"
            raise InputError(f"a pool serves one model; these are: {found}")
        if any(member.batch > 1 for member in members):
            raise InputError("a pool is for servers that are asked one request at a time")
        self._members = [_Member(member) for member in members]
        self._patience, self._rest = patience, rest

    @property
    def identity(self) -> str:
        """The model without an address."""
        return _name(self._members[0].backend.identity)

    @property
    def members(self) -> list[B]:
        """The backends, in the order given."""
        return [member.backend for member in self._members]

    @property
    def wants(self) -> frozenset[Want]:
        """What every member can be asked for."""
        return frozenset.intersection(*(member.backend.wants for member in self._members))

    def each(self, wrap: Callable[[B], Backend]) -> Pool[Backend]:
        """A pool of the same members, each wrapped, say to have limits of its own."""
        wrapped = [wrap(member.backend) for member in self._members]
        return Pool(wrapped, patience=self._patience, rest=self._rest)

    async def answer(self, requests: Sequence[Request]) -> list[Reply]:
        """Replies in the order of the requests."""
        return await side_by_side([self._one(request) for request in requests])

    async def close(self) -> None:
        """Close every member."""
        for member in self._members:
            await member.backend.close()

    async def _one(self, request: Request) -> Reply:
        now = asyncio.get_running_loop().time()
        ready = [member for member in self._members if self._ready(member, now)]
        if ready:
            member = min(ready, key=lambda one: one.under_way)
        else:
            member = min(self._members, key=lambda one: (one.under_way, one.rests_until))
        number, reply = await member.answer(request)
        if not reply.transient:
            member.failed, member.rests_until = 0, 0.0
            return reply
        self._note_failure(member, number, reply.error)
        return replace(reply, error=self._told()) if self._all_rest() else reply

    def _ready(self, member: _Member[B], now: float) -> bool:
        tried = member.failed >= self._patience and member.under_way
        return member.rests_until <= now and not tried

    def _note_failure(self, member: _Member[B], number: int, error: str) -> None:
        member.error = error
        if number <= member.last_before_failure:
            return
        member.last_before_failure = member.newest
        member.failed += 1
        if member.failed >= self._patience:
            member.rests_until = asyncio.get_running_loop().time() + self._rest

    def _all_rest(self) -> bool:
        return all(member.failed >= self._patience for member in self._members)

    def _told(self) -> str:
        each = "; ".join(f"{one.backend.identity}: {one.error}" for one in self._members)
        return f"all {len(self._members)} servers fail: {each}"


class ModelPool(Pool[Model]):
    """A pool of models; text is read as the first one does."""

    @property
    def tokenizer(self) -> Tokenizer:
        """How the model reads text; where the first server is away, another is asked for it."""
        first, *others = (model.tokenizer for model in self.members)
        if not isinstance(first, Served):
            return first
        return first.backed_by([other for other in others if isinstance(other, Served)])

    @property
    def counter(self) -> Tokenizer:
        """The same as far as no server has to be asked."""
        return self.members[0].counter


def _name(identity: str) -> str:
    """An identity without the address after its last @; settings behind that stay."""
    name, _, address = identity.rpartition("@")
    return name + re.sub(r"^[^#,]*", "", address) if name else identity
