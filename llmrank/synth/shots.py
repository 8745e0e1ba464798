"""Choosing the examples that writers are shown."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from statistics import fmean
from typing import NamedTuple

from llmrank.errors import SpecError
from llmrank.plan import Likelihood, Need, Plan, ask_all
from llmrank.synth.base import Shot
from llmrank.types import Document, Query

TASK = "query_given_examples"
NEEDS = (Need(Likelihood, task=TASK),)


class Chosen(NamedTuple):
    """Examples, and the mean log-probability (nats a token) of held-out queries behind them.

    `worst` is that of the worst set that was tried.
    """

    shots: tuple[Shot, ...]
    value: float
    worst: float


def choose_shots(
    pool: Sequence[Shot], n: int, *, draws: int = 16, held_out: int = 16, seed: int = 0
) -> Plan[Chosen]:
    """The n of the pool behind which a model finds the other queries of the pool likeliest.

    The first `held_out` of a shuffled pool, at most half of it, are the queries to be found likely;
    of the others `draws` sets of n are tried, all in one round of `draws` times `held_out` asks.
    The filter of SPTAR, arXiv 2307.08303, for examples in the prompt in place of a tuned one. A
    set that lost an answer is not chosen; `SpecError` where the pool is too small, or none is left.
    """
    drawn = Random(seed)
    shuffled = drawn.sample(list(pool), len(pool))
    count = min(held_out, len(pool) // 2)
    judged, rest = shuffled[:count], shuffled[count:]
    if n < 1 or len(rest) < n or not judged:
        raise SpecError(f"{n} examples cannot be chosen from {len(pool)}; twice as many are needed")
    sets = list(dict.fromkeys(tuple(sorted(drawn.sample(rest, n))) for _ in range(draws)))
    asks = [
        Likelihood(Query("", one.query), Document("", one.document), TASK, examples)
        for examples in sets
        for one in judged
    ]
    answers = yield from ask_all(asks)
    values: dict[tuple[Shot, ...], float] = {}
    for place, examples in enumerate(sets):
        found = answers[place * len(judged) : (place + 1) * len(judged)]
        known = [answer.value.mean for answer in found if answer.value is not None]
        if len(known) == len(judged):
            values[examples] = fmean(known)
    if not values:
        raise SpecError("no example could be chosen: the model gave no likelihood")
    best = max(values, key=lambda examples: values[examples])
    return Chosen(best, values[best], min(values.values()))
