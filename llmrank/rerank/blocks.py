"""Blocks: several candidates shown in one call and put in order, by text or by label."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

from llmrank.errors import SpecError
from llmrank.plan import Answer, Ask, By, Choice, Order, Permutation, Pick, Plan, ask_all
from llmrank.types import Candidate, Query

LETTERS = 26
"""The most documents that one call can tell apart by single-letter labels."""


class Judged(NamedTuple):
    """A block in the order that its answer gave, best first.

    The answer said something of the first `named` only: they come before the others, and the
    others, which keep the order they were shown in, were not compared with one another.
    """

    order: tuple[int, ...]
    named: int


def check_by(method: str, by: str, size: int) -> None:
    """Raise `SpecError` unless blocks of this size can be read in this way."""
    if by not in ("text", "labels"):
        raise SpecError(f"{method}: by must be text or labels, not {by!r}")
    if by == "labels" and size > LETTERS:
        raise SpecError(f"{method}: by labels at most {LETTERS} documents go into one call")


def ordered(
    query: Query, candidates: Sequence[Candidate], blocks: Sequence[Sequence[int]], by: str
) -> Plan[list[Judged | None]]:
    """Put every block (positions of candidates) in order, all in one round.

    None stands for an answer with nothing usable. A block of fewer than two needs no call.
    """
    asked = [block for block in blocks if len(block) > 1]
    answers = yield from ask_all([_question(query, candidates, block, by) for block in asked])
    read = iter([_judged(block, answer) for block, answer in zip(asked, answers, strict=True)])
    return [next(read) if len(block) > 1 else Judged(tuple(block), len(block)) for block in blocks]


def _question(
    query: Query, candidates: Sequence[Candidate], block: Sequence[int], by: str
) -> Ask[Any]:
    docs = tuple(candidates[i].document for i in block)
    return Order(query, docs) if by == "text" else Pick(query, docs, by=cast("By", by))


def _judged(block: Sequence[int], answer: Answer[Any]) -> Judged | None:
    value: Permutation | Choice | None = answer.value
    if value is None:
        return None
    if isinstance(value, Permutation):
        named = len(block) if value.named is None else value.named
        return Judged(tuple(block[place] for place in value.order), named)
    likely = value.probabilities or ()
    places = sorted(range(len(block)), key=lambda i: (-likely[i], i))
    return Judged(tuple(block[place] for place in places), sum(p > 0 for p in likely))
