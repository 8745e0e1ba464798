"""Several backends as one, each for what it is wanted for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from llmrank.errors import CapabilityError
from llmrank.request import Backend, Reply, Request, Want


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
