"""What a run will cost, before one request is sent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import cast

from llmrank.api.runs import Inputs
from llmrank.api.session import Session, Settings, settle
from llmrank.backends import Model, connect
from llmrank.backends.oracle import Oracle
from llmrank.backends.tokens import Served
from llmrank.backends.wrappers import Caps, Pool, expected_usage
from llmrank.plan import Attend, Grade, Likelihood, Order, Pick
from llmrank.request import Reply, Request
from llmrank.rerank import Ranker
from llmrank.store import Journal
from llmrank.types import Ordering, Status, Tally, Usage


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a run sends if the model confirms the first-stage order and every reply is usable.

    `model` is its name in the journal, where what a probe found out may be part of it.
    `calls` are those not yet in the journal, `known` those that are; the same request is sent once.
    Methods that sort (`prp`, `setwise`, `tdpart`, `blitz`, `acurank` ...) send more where answers
    move documents, up to `calls_at_most`, which comes from their formulas; it is `calls` where the
    answers cannot change the number. Unusable replies are asked for again beyond both.

    All else is that of `calls`. Tokens of the prompts are counted as `counting` says, those of
    the replies are the limit sent with each request; `cost` is that of both, 0 where there are
    no prices; `too_long` prompts cannot be made to fit the model and fail. `rounds` is the
    largest number of calls of a query that have to wait for one another, `seconds_at_least` what
    the limits per minute make of the calls and of the tokens of their prompts.

    A server's own tokenizer is not asked. Where the run asks it, passages that have to be cut to
    tokens may be cut elsewhere, and what the journal has of them is then not among the `known`.
    """

    model: str
    queries: int
    calls: int
    calls_at_most: int
    known: int
    rounds: int
    usage: Usage
    cost: float
    passages_cut: int
    too_long: int
    counting: str
    seconds_at_least: float


class StandIn(Oracle):
    """Takes the model's place: keeps every order as it is, and counts what would have been sent.

    By query id: `calls`, replies `known` from the journal, and of these the `certain` ones, which
    are needed before anything is sent.
    """

    def __init__(self, model: Model, journal: Journal | None) -> None:
        super().__init__({})
        asked = model.tokenizer
        self.wants = model.wants
        self.tokenizer = asked.unasked if isinstance(asked, Served) else asked
        self._model, self._journal = model, journal
        self.usage = Usage()
        self.calls: Counter[str] = Counter()
        self.known: Counter[str] = Counter()
        self.certain: Counter[str] = Counter()
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
        again = key in self._seen
        self._seen.add(key)
        query = cast("Order | Pick | Grade | Likelihood | Attend", request.ask).query.id
        if reply is not None:
            self.known[query] += not again
            self.certain[query] += not self.calls[query]
        elif not again:
            self.calls[query] += 1
            self.usage += expected_usage(request, self._model.counter.count)
        return reply

    def at_most(self, query: str, asks: tuple[int, bool], rounds: int) -> int:
        """The most calls of a query, given the most asks of its plan and whether this is exact."""
        calls, (most, exact) = self.calls[query], asks
        if not calls or (exact and rounds < 2):
            return calls
        return max(calls, most - self.certain[query])


def estimate(
    settings: Settings,
    method: Ranker,
    inputs: Inputs,
    journal: Journal | None = None,
    *,
    model: Model | None = None,
) -> Estimate:
    """Drive the run's own plans with a stand-in for the model and count what it would be sent.

    The model, by default that of the settings, is sent nothing, and needs no key.
    """
    model = model or connect(settings.model, base_url=settings.base_url)
    if journal is not None:
        model = settle(model, journal)
    counter = StandIn(model, journal)
    total = Tally()
    rounds: dict[str, int] = {}

    def finished(query_id: str, ordering: Ordering, tally: Tally) -> None:
        nonlocal total
        total += tally
        rounds[query_id] = tally.rounds

    with Session(
        replace(settings, caps=Caps(), rpm=None, tpm=None, hedge=False), model=counter
    ) as session:
        session.check(method.needs)
        inputs.attempt(method)
        session.run_sync(inputs.plans(method), finished)
    at_most = sum(
        counter.at_most(query, method.most_calls(inputs.candidates(hits)), rounds[query])
        for query, hits in inputs.groups()
    )
    cost = settings.caps.price(counter.usage)
    return Estimate(
        model.identity,
        len(rounds),
        counter.calls.total(),
        at_most,
        counter.known.total(),
        total.rounds,
        counter.usage,
        cost,
        total.cut,
        total.outcomes.get(Status.FAILED, 0),
        model.counter.counting,
        _least(settings, model, counter.calls.total(), counter.usage.prompt_tokens),
    )


def _least(settings: Settings, model: Model, calls: int, tokens: int) -> float:
    """Seconds that a run takes at the least; of a pool each server has the limits of its own."""
    servers = len(model.members) if isinstance(model, Pool) else 1
    limited = ((calls, settings.rpm), (tokens, settings.tpm))
    # What the first minute takes is sent at once. A request beyond the limit of tokens goes alone.
    minutes = (min(calls, ceil(n / (limit * servers))) - 1 for n, limit in limited if limit)
    return 60.0 * max([0, *minutes]) if model.batch == 1 else 0.0
