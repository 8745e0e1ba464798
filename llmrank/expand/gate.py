"""A decision, query by query, whether an augmentation is searched with or the plain query."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean, pstdev
from typing import Any

from llmrank.errors import SpecError
from llmrank.expand.base import Expansion, FirstStage, NeedsIndex, check_shares, plain
from llmrank.plan import Answer, Embed, Grade, Plan, Vectors, ask_all, reworked
from llmrank.types import Query, Status

Inner = Callable[[Query, FirstStage], Plan[Expansion]]

_DEPTHS: Mapping[str, int] = {"overlap": 10, "grade": 5, "scores": 100}
"""How many documents of a list each gate looks at."""


def gated(
    query: Query,
    first: FirstStage,
    *,
    inner: Inner,
    by: str = "overlap",
    k: int = 0,
    least: float = 0.5,
    above: float = 0.0,
    below: float = 0.3,
) -> Plan[Expansion]:
    """Use the inner augmentation for a query only where a gate lets it.

    The gates look at the first k documents of a list; 0 is their own number:

        overlap  of the first 10 documents of the plain query the share `least` or more stays among
                 the first 10 of the augmentation
        grade    a model says yes to the first 5 documents of the augmentation with a higher mean
                 probability than to those of the plain query (one call for every document of
                 either; none where both are the same five, which the plain query keeps)
        scores   the NQC of the first 100 scores of the plain query lies between `above` and `below`
                 (where it is low, they are so even that it is not clear what the query means, and
                 where it is high, the first documents are a safer feedback); elsewhere nothing is
                 asked

    NQC (Shtok et al. 2012, ACM TOIS 30) is the standard deviation of the scores over the score of
    the whole collection as one document; here over their mean, which needs no such document. Which
    threshold is right depends on the collection. `note` says what was decided and by what number.
    """
    _check(by, k, least, above, below)
    k = k or _DEPTHS[by]
    if by == "scores" and len(first.kinds) > 1:
        raise SpecError("by=scores is for one first stage; fused scores say nothing of a query")
    if not first.size:
        raise NeedsIndex
    base = yield from plain(query, first, note="")
    expanding = _embedded_once(inner(query, first), base)
    if by == "scores":
        value = nqc([score for _, score in first.search(base, k)])
        return (yield from _by_scores(base, expanding, value, k, (above, below)))
    found = yield from expanding
    if not found.expanded:
        return found
    old, new = ([name for name, _ in first.search(one, k)] for one in (base, found))
    if by == "overlap":
        share = len({*old} & {*new}) / len(old) if old else 1.0
        return _decided(base, found, share >= least, f"overlap@{k} {share:.2f}, needs {least:g}")
    if {*old} == {*new}:
        return _decided(base, found, False, f"the same {len(old)} documents")
    graded = yield from _grades(query, first, list(dict.fromkeys([*old, *new])))
    before, after = (_mean(graded, names) for names in (old, new))
    note = f"grade@{k} {after:.3f} against {before:.3f}"
    return _decided(base, found, after > before, note)


def gate_grades(parameters: Mapping[str, Any]) -> int:
    """How many documents at most a gate has graded for a query: the first k of both lists."""
    by = parameters["by"]
    return 2 * (int(parameters["k"]) or _DEPTHS[by]) if by == "grade" else 0


def _by_scores(
    base: Expansion, expanding: Plan[Expansion], value: float, k: int, bounds: tuple[float, float]
) -> Plan[Expansion]:
    low, high = bounds
    note = f"NQC@{k} {value:.3f}, needs {low:g} to {high:g}"
    if not low <= value <= high:
        return _decided(base, base, False, note)
    found = yield from expanding
    return _decided(base, found, True, note) if found.expanded else found


def _embedded_once(plan: Plan[Expansion], base: Expansion) -> Plan[Expansion]:
    """A plan that is given the vector of the query, where the plain search has it, unasked."""
    own = Embed((base.query.text,), role="query")
    given = [view.vector for view in base.views if view.vector is not None]

    def known() -> Plan[Answer[Vectors]]:
        yield from ()
        return Answer(status=Status.OK, value=given[0])

    return reworked(plan, lambda item: known() if given and item == own else item)


def nqc(scores: Sequence[float]) -> float:
    """Standard deviation of the scores over the size of their mean; 0 where there are none."""
    mean = abs(fmean(scores)) if scores else 0.0
    return pstdev(scores) / mean if mean else 0.0


def _grades(query: Query, first: FirstStage, names: Sequence[str]) -> Plan[Mapping[str, float]]:
    """The probability of a yes for each document that was given one."""
    answers = yield from ask_all([Grade(query, first.document(name)) for name in names])
    return {
        name: answer.value.probabilities[0]
        for name, answer in zip(names, answers, strict=True)
        if answer.value is not None
    }


def _mean(graded: Mapping[str, float], names: Sequence[str]) -> float:
    return fmean([graded[name] for name in names if name in graded] or [0.0])


def _decided(base: Expansion, found: Expansion, expand: bool, note: str) -> Expansion:
    """The one or the other, with all that was written."""
    if expand:
        return replace(found, note=f"expanded: {note}")
    return replace(base, texts=found.texts, answers=found.answers, note=f"plain: {note}")


def _check(by: str, k: int, least: float, above: float, below: float) -> None:
    if by not in _DEPTHS:
        raise SpecError(f"by is one of {', '.join(_DEPTHS)}, not {by!r}")
    if k < 0:
        raise SpecError("k must be at least 1, or 0 for the gate's own")
    check_shares(least=least)
    if not 0 <= above <= below < math.inf:
        raise SpecError("above must be 0 or more, and below not less than above")
