"""What a run will cost, before one request is sent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from llmrank.api.runs import Inputs
from llmrank.api.session import Session, Settings
from llmrank.backends import Model, connect
from llmrank.backends.oracle import Oracle
from llmrank.backends.wrappers import Caps, expected_usage
from llmrank.request import Reply, Request
from llmrank.rerank import Ranker
from llmrank.store import Journal
from llmrank.types import Ordering, Tally, Usage


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a run sends if the model confirms the first-stage order and every reply is usable.

    Methods that sort (`prp`, `setwise`, `tdpart`, `blitz`, `acurank` ...) send more where answers
    move documents: those whose formula of calls is a bound. Unusable replies are asked for again.

    `calls` are those not yet in the journal, `known` those that are. Tokens of the prompts are
    counted as `counting` says, those of the replies are the limit sent with each request; `cost`
    is that of both, 0 where there are no prices. `rounds` is the largest number of calls of a
    query that have to wait for one another.
    """

    queries: int
    calls: int
    known: int
    rounds: int
    usage: Usage
    cost: float
    passages_cut: int
    counting: str


class StandIn(Oracle):
    """Takes the model's place: keeps every order as it is, and counts what would have been sent."""

    def __init__(self, model: Model, journal: Journal | None) -> None:
        super().__init__({})
        self.wants = model.wants
        self._model, self._journal = model, journal
        self.usage = Usage()
        self.calls = self.known = 0
        self._seen: set[str] = set()

    async def answer(self, requests: Sequence[Request]) -> list[Reply]:
        """The journal's reply where there is one, else one that keeps the order."""
        return [
            self._stored(request) or (await super(StandIn, self).answer([request]))[0]
            for request in requests
        ]

    def _stored(self, request: Request) -> Reply | None:
        key = request.key(self._model.identity)
        reply = self._journal.get(key) if self._journal is not None else None
        if reply is not None or key in self._seen:
            self.known += 1
            return reply
        self._seen.add(key)
        self.calls += 1
        self.usage += expected_usage(request, self._model.count)
        return None


def estimate(
    settings: Settings, method: Ranker, inputs: Inputs, journal: Journal | None = None
) -> Estimate:
    """Drive the run's own plans with a stand-in for the model and count what it would be sent."""
    model = connect(settings.model, base_url=settings.base_url)
    counter = StandIn(model, journal)
    total = Tally()
    queries = 0

    def finished(query_id: str, ordering: Ordering, tally: Tally) -> None:
        nonlocal total, queries
        total += tally
        queries += 1

    with Session(replace(settings, caps=Caps()), model=counter) as session:
        session.check(method.needs)
        session.run_sync(inputs.plans(method), finished)
    cost = settings.caps.price(counter.usage)
    return Estimate(
        queries,
        counter.calls,
        counter.known,
        total.rounds,
        counter.usage,
        cost,
        total.cut,
        model.counting,
    )
