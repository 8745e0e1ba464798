"""Asking a server what it is, by requests that cost nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from llmrank.backends._answers import Failure
from llmrank.backends._wire import Rejection
from llmrank.backends.dialects import DIALECTS, UNKNOWN, by_models
from llmrank.backends.openai import Learnt, OpenAIBackend
from llmrank.backends.wrappers.base import side_by_side
from llmrank.errors import BackendError


class Greeting:
    """Asks a backend's server what it is, each thing for `seconds` at most if that is given.

    The backend uses what it says. `changed` tells in which way the server is not the one that the
    backend knew, `trouble` what kept it from saying all that it was asked, but for a plain refusal.
    """

    def __init__(self, backend: OpenAIBackend, seconds: float | None = None) -> None:
        self._backend, self._seconds = backend, seconds
        self.trouble = ""
        self._read: dict[str, Mapping[str, Any]] = {}
        self.changed = ""
        self.models: tuple[str, ...] = ()
        self.version = ""
        self.context: int | None = None

    async def identify(self) -> None:
        """What the server says of itself: its kind, models, version and context length.

        Free requests. What the backend knew of another kind or version is not used any more, but
        for what decides what it is asked and under which name its answers are kept.
        """
        backend, known = self._backend, self._backend.learnt
        rows = await self._rows()
        self.models = tuple(str(row["id"]) for row in rows if "id" in row)
        own = [row for row in rows if row.get("id") == backend.model]
        name = backend.wire.dialect
        if name == UNKNOWN:
            name = by_models(own or rows)
        if name == UNKNOWN:
            name = await self._by_routes()
        if name == UNKNOWN:
            # A server that says nothing now may still be the one that was known.
            name = known.dialect
        dialect = DIALECTS[name]
        version, context = [
            await self._told(where, own) for where in (dialect.version, dialect.context)
        ]
        self.version = version if isinstance(version, str) else ""
        self.context = context if isinstance(context, int) else None
        self._compare(known, name)

    def _compare(self, known: Learnt, dialect: str) -> None:
        """Note what is new, and use the dialect and the version from now on."""
        backend = self._backend
        pairs: list[tuple[object, object]] = [
            (known.dialect, dialect),
            (known.version, self.version),
            (known.context, self.context),
        ]
        if known != Learnt():
            new = [(now, old) for old, now in pairs if old and now and old != now]
            self.changed = ", ".join(f"{now} instead of {old}" for now, old in new)
        if self.changed:
            known = Learnt(
                thinking=known.thinking, context=known.context, tokenizes=known.tokenizes
            )
        version = self.version or known.version
        backend.adopt(replace(known, dialect=dialect, version=version))

    async def _rows(self) -> list[Mapping[str, Any]]:
        """The models listed; raises where nobody answers or the key is wrong."""
        try:
            listed = (await self._asked("/models")).get("data")
        except Failure as failure:
            if not (failure.status or failure.late):
                raise BackendError(str(failure)) from None
            return []
        except Rejection as rejection:
            if rejection.status == 401:
                raise
            return []
        return [row for row in listed if isinstance(row, dict)] if isinstance(listed, list) else []

    async def _by_routes(self) -> str:
        marks = [
            (name, path, key)
            for name, dialect in DIALECTS.items()
            for path, key in dialect.marks.routes.items()
        ]
        found = await side_by_side([self._get(path) for _, path, _ in marks])
        fitting = [name for (name, _, key), told in zip(marks, found, strict=True) if key in told]
        return fitting[0] if fitting else UNKNOWN

    async def _get(self, path: str) -> Mapping[str, Any]:
        if path not in self._read:
            try:
                self._read[path] = await self._asked(path)
            except (Failure, Rejection):
                self._read[path] = {}
        return self._read[path]

    async def _asked(self, path: str) -> dict[str, Any]:
        """What the server answers; notes what kept it from that for a moment."""
        try:
            # Not by the wire's own limit, which would hold for what else is under way.
            async with asyncio.timeout(self._seconds):
                return await self._backend.send(path)
        except TimeoutError:
            self.trouble = f"no answer within {self._seconds:.2g} s"
            raise Failure(self.trouble, transient=True, late=True) from None
        except Failure as failure:
            # Some servers answer a route that they do not have by a page or an error with 200.
            if failure.transient and failure.status != 200:
                self.trouble = str(failure)
            raise

    async def _told(self, where: Sequence[str], own: Sequence[Mapping[str, Any]]) -> object:
        """The value at a path and the keys inside its answer."""
        if not where:
            return None
        path, *keys = where
        found: Any = (*own, {})[0] if path == "/models" else await self._get(path)
        for key in keys:
            found = found.get(key) if isinstance(found, dict) else None
        return found
