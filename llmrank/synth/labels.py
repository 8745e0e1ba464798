"""Labels and scores that a reranking method gives to the passages beside a query."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from random import Random
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

import llmrank.spec as spec
from llmrank.errors import SpecError
from llmrank.plan import (
    Answer,
    Ask,
    Likelihood,
    Need,
    Permutation,
    Plan,
    ask,
    ask_all,
    reworked,
    together,
)
from llmrank.synth.base import QUERY, SOURCE, WRITTEN, Example, Passage, Ranks, Stage, World
from llmrank.synth.negatives import kept, with_sources
from llmrank.types import Candidate, Query

T = TypeVar("T")

FIRST_STAGES = ("bm25", "dense", "hybrid")


class Judged(NamedTuple):
    """What a method says of a passage: its place among those that it judged (from 0), its score."""

    place: int
    score: float | None


class _Judging(Stage):
    """A stage whose method judges passages; `plan` gives what it says of each, by document id."""

    ranks: ClassVar[Literal["never", "may", "must"]] = "must"

    @property
    def needs(self) -> list[Need]:
        """Those of the method."""
        return list(self.method.needs)

    def _shown(self, example: Example) -> list[Passage]:
        """The passages that the method is to judge, as it sees them."""
        return _documents(example)[: self.method.depth]

    def plan(self, example: Example, world: World) -> Plan[Any]:
        """The calls of the method."""
        return (yield from judged(self.method, example.asked, self._shown(example)))


@dataclass(frozen=True)
class Denoise(_Judging):
    """Mined passages are labelled by a model: 0 at most at `negative`, 1 at least at `positive`.

    The method is `yesno` or `grade`, and the bounds are probabilities or, of an expected grade,
    shares of the scale: with `grade(labels=4)` the grade 2.7 is 0.9. What scores between the bounds
    stays without a label, as does what the model gave no usable answer for. Positive passages, the
    sources among them, are not judged, nor what stands beyond the depth of the method; with
    `unsure` only passages without a label are, so that `denoise(yesno) >> denoise(grade(labels=4),
    unsure=true)` asks more closely about those that the first left open. Fewer than `least`
    negatives drop the example.
    """

    name: ClassVar[str] = "denoise"
    paper: ClassVar[str] = "RocketQA, arXiv 2010.08191; in a row: RLHN, arXiv 2505.16967"

    _: KW_ONLY
    negative: float = 0.1
    positive: float = 0.9
    unsure: bool = False
    least: int = 1

    def check(self) -> None:
        """Raise `SpecError` for bounds that are none and a method without a scale."""
        if not 0 <= self.negative < self.positive <= 1 or self.least < 0:
            raise SpecError("denoise needs 0 <= negative < positive <= 1 and least at least 0")
        _scale(self.method)

    def _shown(self, example: Example) -> list[Passage]:
        open_to = (None,) if self.unsure else (None, 0)
        sources = {span.document.id for span in example.sources}
        found = [
            passage
            for passage in _documents(example)
            if passage.label in open_to and passage.document.id not in sources
        ]
        return found[: self.method.depth]

    def settle(self, example: Example, found: Any, memory: Any) -> Example:  # noqa: ANN401
        """The value is the number of negatives; the raw score is kept as `denoise`."""
        asked = {passage.document.id for passage in self._shown(example)}
        low, high = _scale(self.method)
        labels: dict[str, int | None] = dict.fromkeys(asked)
        scores: dict[str, float] = {}
        for name in asked & found.keys():
            scores[name] = found[name].score
            share = (scores[name] - low) / (high - low)
            if not self.negative < share < self.positive:
                labels[name] = int(share >= self.positive)
        example = _labelled(with_sources(example), labels, scores, self.name)
        open_ = sum(label is None for label in labels.values())
        note = f"judged: {len(scores)}, positive: {sum(map(bool, labels.values()))}, open: {open_}"
        return kept(example, self, self.least, note)


@dataclass(frozen=True)
class Relabel(_Judging):
    """The sources and what was found are ranked by a model; the best becomes the positive passage.

    The rankings by the method and, with `likelihood`, by the likelihood of the query are fused by
    the sum of their reciprocal ranks. The best passage that is no written one gets the label 1. A
    source that another one beats loses its label: it was written for, but is not the best to train
    on, and never a negative. Of several sources, none of which answers alone, all stay positive and
    nothing replaces them. What stands behind the last source and in the lowest share `low` of the
    ranking is a negative; all else, what beats a source too, gets no label, but other positives
    keep theirs.

    The sources stand first before the method, so equal ones stay ahead; those beyond its depth keep
    their labels. A passage that one of the rankings says nothing of has no label, and where that is
    a source, nothing is changed. A cascade such as `yesno@20 >> grade(labels=4)@5` judges closely
    what is near the top. Fewer than `least` negatives drop the example.
    """

    name: ClassVar[str] = "relabel"
    paper: ClassVar[str] = "Gecko (FRet), arXiv 2403.20327"

    _: KW_ONLY
    likelihood: bool = True
    low: float = 0.5
    least: int = 1

    def check(self) -> None:
        """Raise `SpecError` for a share that is none."""
        if not 0 < self.low <= 1 or self.least < 0:
            raise SpecError("relabel: low must be above 0 and at most 1, least at least 0")

    @property
    def needs(self) -> list[Need]:
        """Those of the method, and the likelihood of the query."""
        own = [Need(Likelihood)] if self.likelihood else []
        return list(dict.fromkeys([*self.method.needs, *own]))

    def plan(self, example: Example, world: World) -> Plan[list[dict[str, Judged]]]:
        """Both rankings side by side."""
        shown = self._shown(example)
        plans = [judged(self.method, example.asked, shown)]
        if self.likelihood:
            plans.append(_likelihoods(example.asked, shown))
        return (yield from together(plans))

    def settle(self, example: Example, found: Any, memory: Any) -> Example:  # noqa: ANN401
        """The value is the number of negatives; the fused score is kept as `relabel`."""
        example = with_sources(example)
        shown = [passage.document.id for passage in self._shown(example)]
        scores = _fused(shown, found)
        order = sorted(scores, key=lambda name: -scores[name])
        sources = {span.document.id for span in example.sources}
        if not sources <= scores.keys() or len(order) < 2:
            return kept(example, self, self.least, "unchanged: a source could not be ranked")
        passages = {passage.document.id: passage for passage in example.passages}
        best = next(name for name in order if passages[name].origin != WRITTEN)
        stay = sources if len(sources) > 1 else {best}
        behind = max(map(order.index, sources))
        labels: dict[str, int | None] = {name: passages[name].label or None for name in shown}
        labels |= self._labels(labels, order, stay, behind)
        note = f"source at rank {behind + 1} of {len(order)}"
        if not stay & sources:
            labels[example.source.id] = None
            note += f", replaced by {best}"
        return kept(_labelled(example, labels, scores, self.name), self, self.least, note)

    def _labels(
        self, own: Mapping[str, int | None], order: Sequence[str], stay: set[str], behind: int
    ) -> dict[str, int | None]:
        """The labels of a ranking: those that stay are positive, the last source is at `behind`."""
        labels: dict[str, int | None] = {}
        for place, name in enumerate(order):
            low = place > behind and place >= len(order) * (1 - self.low)
            labels[name] = own[name] or (1 if name in stay else 0 if low else None)
        return labels


@dataclass(frozen=True)
class Teacher(_Judging):
    """The scores of a reranking method for the sources and all other passages, to be distilled.

    A raw score is kept under the name `score`. A cascade, whose scores are on several scales, and a
    method without scores, such as `sliding`, give every passage minus its rank (from 1), and so
    does any method with `by=rank`; but places count only where every call had a whole answer, else
    the order that passages came in would pass for the teacher's. A passage without an answer gets
    no score.

    Of the passages the first `n` (0: all) up to the depth of the method are shown: sources, then
    those with a label, then the others. They are shown as the first stage ranked them where one has
    scored all of them, else as they stand, the sources first; with `shuffle` in an order drawn by
    `seed` and the id of the example, so that no place is favoured. Fewer than `least` scores drop
    the example.
    """

    name: ClassVar[str] = "teacher"
    paper: ClassVar[str] = "permutations: RankGPT, arXiv 2304.09542"

    _: KW_ONLY
    n: int = 0
    by: str = "score"
    score: str = "teacher"
    shuffle: bool = False
    seed: int = 0
    least: int = 1

    def check(self) -> None:
        """Raise `SpecError` for numbers below zero and a name that a first stage has."""
        if self.n < 0 or self.least < 0:
            raise SpecError("teacher: n and least must be at least 0")
        if self.by not in ("score", "rank"):
            raise SpecError(f"teacher: by is score or rank, not {self.by!r}")
        if not self.score.isidentifier() or self.score in FIRST_STAGES:
            raise SpecError(f"teacher: score is a name such as teacher, not {self.score!r}")

    def _shown(self, example: Example) -> list[Passage]:
        found = sorted(_documents(example), key=lambda p: (p.origin != SOURCE, p.label is None))
        found = found[: min(self.n or len(found), self.method.depth)]
        if self.shuffle:
            return Random(f"{self.seed}/{example.id}").sample(found, len(found))
        return sorted(found, key=lambda p: -p.scores[first]) if (first := _first(found)) else found

    def settle(self, example: Example, found: Any, memory: Any) -> Example:  # noqa: ANN401
        """The value is the number of passages with a score."""
        example = with_sources(example)
        by_rank = self.by == "rank" or len(spec.parts(str(self.method), ">>")) > 1
        by_rank = by_rank or all(one.score is None for one in found.values())
        if by_rank:
            # One passage has no order, though a method with scores may give none for it either.
            scores = {name: -(one.place + 1.0) for name, one in found.items() if len(found) > 1}
        else:
            scores = {name: one.score for name, one in found.items() if one.score is not None}
        passages = (p.scored(self.score, scores.get(p.document.id)) for p in example.passages)
        example = replace(example, passages=tuple(passages))
        note = "minus the rank" if by_rank and scores else ""
        return example.judged(self, len(scores) >= self.least, len(scores), self.least, note)


def judged(method: Ranks, query: Query, passages: Sequence[Passage]) -> Plan[dict[str, Judged]]:
    """What a method says of passages, by document id; those it says nothing of are left out.

    A passage was judged if it has a score of its own, or if it has a place that the method settled
    and every call had a whole answer: where one failed, a place may be that of the first stage.
    """
    if not passages:
        return {}
    first = _first(passages)
    candidates = [Candidate(p.document, p.scores.get(first, 0.0)) for p in passages]
    ordering, whole = yield from _watched(method.plan(query, candidates))
    known = [
        i for i in ordering.order[: ordering.settled] if whole or ordering.scores[i] is not None
    ]
    return {
        passages[i].document.id: Judged(place, ordering.scores[i]) for place, i in enumerate(known)
    }


def _likelihoods(query: Query, passages: Sequence[Passage]) -> Plan[dict[str, Judged]]:
    """The log-probability of the query given each passage."""
    answers = yield from ask_all([Likelihood(query, p.document) for p in passages])
    scores = {
        passage.document.id: answer.value.total
        for passage, answer in zip(passages, answers, strict=True)
        if answer.value is not None
    }
    order = sorted(scores, key=lambda name: -scores[name])
    return {name: Judged(place, scores[name]) for place, name in enumerate(order)}


def _fused(shown: Sequence[str], rankings: Sequence[Mapping[str, Judged]]) -> dict[str, float]:
    """The sum of reciprocal ranks, by document id, of what is in all rankings."""
    common = [name for name in shown if all(name in ranking for ranking in rankings)]
    scores = dict.fromkeys(common, 0.0)
    for ranking in rankings:
        order = sorted(common, key=lambda name: ranking[name].place)
        for rank, name in enumerate(order, start=1):
            scores[name] += 1 / rank
    return scores


def _documents(example: Example) -> list[Passage]:
    """The passages of the corpus and the written ones, the sources first."""
    sources = {span.document.id for span in example.sources}
    found = [p for p in with_sources(example).passages if p.origin != QUERY]
    return sorted(found, key=lambda passage: passage.document.id not in sources)


def _labelled(
    example: Example,
    labels: Mapping[str, int | None],
    scores: Mapping[str, float],
    name: str,
) -> Example:
    """With the labels in place of those of the same documents, and scores under a name."""
    passages = (
        replace(p, label=labels.get(p.document.id, p.label)).scored(name, scores.get(p.document.id))
        for p in example.passages
    )
    return replace(example, passages=tuple(passages))


def _scale(method: Ranks) -> tuple[float, float]:
    """The lowest and the highest score of `yesno` and `grade`; `SpecError` for others."""
    stages = spec.parts(str(method), ">>")
    given = spec.split(stages[0])
    labels = method.needs[0].labels
    if len(stages) > 1 or given.name not in ("yesno", "grade") or not labels:
        raise SpecError(f"denoise needs yesno or grade, whose scores have a scale, not {method}")
    if given.name == "yesno" or given.parameters.get("score") == "peak":
        return 0.0, 1.0
    worth = [int(label) if label.isdigit() else i for i, label in enumerate(reversed(labels))]
    return float(min(worth)), float(max(worth))


def _first(passages: Sequence[Passage]) -> str:
    """The first stage that has scored all passages; empty if there is none."""
    return next((name for name in FIRST_STAGES if all(name in p.scores for p in passages)), "")


def _watched(plan: Plan[T]) -> Plan[tuple[T, bool]]:
    """The same plan; what it returns, and whether everything that it asked was answered whole.

    A question that is put again, or drawn several times, counts once: by its best answer.
    """
    answered: dict[Ask[Any], bool] = {}

    def watch(item: Ask[Any]) -> Plan[Answer[Any]]:
        answer = yield from ask(item)
        same = replace(item, sample=0, problem="", stage="")
        answered[same] = answered.get(same, False) or _whole(answer)
        return answer

    result = yield from reworked(plan, watch)
    return result, all(answered.values())


def _whole(answer: Answer[Any]) -> bool:
    """Whether nothing of an answer was filled in: documents that an order left out are."""
    partial = isinstance(answer.value, Permutation) and answer.value.named is not None
    return answer.value is not None and not partial
