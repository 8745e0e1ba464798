"""Which documents a plan heard something about: those shown in an ask with a usable answer."""

from __future__ import annotations

from typing import Any, TypeVar

from llmrank.plan import Answer, Ask, Attend, Grade, Likelihood, Order, Pick, Plan, ask, reworked
from llmrank.types import Document

T = TypeVar("T")


def heard(plan: Plan[T]) -> Plan[tuple[T, set[str]]]:
    """The same plan; what it returns, and the ids of the documents in its usable answers."""
    found: set[str] = set()

    def listen(item: Ask[Any]) -> Plan[Answer[Any]]:
        answer = yield from ask(item)
        if answer.value is not None:
            found.update(document.id for document in _shown(item))
        return answer

    result = yield from reworked(plan, listen)
    return result, found


def _shown(item: Ask[Any]) -> tuple[Document, ...]:
    if isinstance(item, Grade | Likelihood):
        return (item.doc,)
    return item.docs if isinstance(item, Order | Pick | Attend) else ()
