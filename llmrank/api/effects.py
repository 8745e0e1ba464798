"""What an augmentation did to each query: won or lost against the plain query, and with what."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

import llmrank.evaluate as measures
from llmrank.evaluate import Comparison, Qrels, Run
from llmrank.expand import Expansion

MEASURE = measures.MEASURES[0]


@dataclass(frozen=True, slots=True)
class Effect:
    """One judged query: nDCG@10 plain and augmented, what was written and the terms added."""

    query: str
    text: str
    plain: float
    augmented: float
    texts: tuple[str, ...]
    terms: tuple[str, ...]
    note: str

    @property
    def difference(self) -> float:
        """What was won; below 0 what was lost."""
        return self.augmented - self.plain

    def record(self) -> dict[str, object]:
        """One line of `effects.jsonl`."""
        return {**asdict(self), "difference": self.difference}


def effects(
    expansions: Iterable[Expansion],
    plain: Run,
    augmented: Run,
    qrels: Qrels,
    analyze: Callable[[str], Iterable[str]],
) -> tuple[list[Effect], Comparison]:
    """The effect on every judged query, the largest gain first, and the paired test over them.

    `analyze` gives the terms of a query, which are not among those that were added to it.
    """
    expanded = {expansion.query.id: expansion for expansion in expansions}
    judged = {query: qrels[query] for query in expanded if query in qrels}
    before, after = (
        measures.measure(run, judged, (MEASURE,))[MEASURE] for run in (plain, augmented)
    )
    found = [
        Effect(
            query,
            expanded[query].query.text,
            before[query],
            after[query],
            expanded[query].texts,
            _added(expanded[query], analyze),
            expanded[query].note,
        )
        for query in judged
    ]
    found.sort(key=lambda effect: (-effect.difference, effect.query))
    return found, measures.compare(after, before)


def weighted(expansion: Expansion) -> dict[str, float]:
    """The terms of the searches, each with the largest weight that it has; the heaviest first."""
    weights: dict[str, float] = {}
    for view in expansion.views:
        for term, weight in view.terms.items():
            weights[term] = max(weight, weights.get(term, 0.0))
    return dict(sorted(weights.items(), key=lambda item: (-item[1], item[0])))


def _added(expansion: Expansion, analyze: Callable[[str], Iterable[str]]) -> tuple[str, ...]:
    terms = weighted(expansion)
    own = set(analyze(expansion.query.text)) if terms else set()
    return tuple(term for term in terms if term not in own)
