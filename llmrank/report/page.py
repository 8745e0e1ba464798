"""The page: one HTML file with its pictures inside, which asks nothing of a network."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.resources import files
from typing import Any, NamedTuple

import jinja2

from llmrank.report.figures import Dot, Histogram, histogram, scatter
from llmrank.report.parts import (
    Cost,
    Documents,
    Funnel,
    Pair,
    Part,
    Queries,
    Record,
    Samples,
    Spending,
    Topics,
    failure,
)
from llmrank.report.passages import Passages
from llmrank.report.sample import Numbers

# Controls, halves of characters, and marks that turn the direction of what follows them.
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069\ufffe\uffff]"
)
_MILLION = 1_000_000
_LONGEST = 2_000  # characters of a text that are shown
_OWN_PLACE = ("recipe", "prompts")  # what of the manifest has a section of its own


def report(
    examples: Iterable[Record], summary: Mapping[str, Any], manifest: Mapping[str, Any]
) -> str:
    """One page about the examples of a run: what was kept and why, and how it was made.

    `examples` are the lines of `examples.jsonl`, read once; memory does not grow with their number,
    as what cannot be counted is drawn at random, the same draw every time. `summary` and `manifest`
    are those of the run. The summary may hold `funnel`: how many documents or examples `came` to
    each `step` of the recipe and were `kept`; `topics`: for ids of examples or documents a `point`
    (x, y), a `cluster` or both; and `prices`: money per million `prompt` and `completion` tokens.
    What the examples do not have is left out with a sentence that says so.
    """
    steps = [str(step["step"]) for step in summary.get("funnel") or ()]
    parts = _Parts(Topics(summary.get("topics") or {}), Funnel(steps))
    whole = parts.all
    for example in examples:
        for part in whole:
            part.add(example)
    parts.spending.others(summary.get("stages") or {}, steps)
    return _template().render(
        parts=parts,
        summary=summary,
        manifest=manifest,
        recipe=_written(manifest.get("recipe")),
        prompts=list(_prompts(parts.spending, manifest.get("prompts"))),
        details=[row for row in _flat(manifest) if row[0].split(".")[0] not in _OWN_PLACE],
        failure=failure,
        prices=summary.get("prices") or {},
    )


@dataclass
class _Parts:
    """All that is counted, with the pictures of it."""

    topics: Topics
    funnel: Funnel = field(default_factory=Funnel)
    queries: Queries = field(default_factory=Queries)
    documents: Documents = field(default_factory=Documents)
    passages: Passages = field(default_factory=Passages)
    spending: Spending = field(default_factory=Spending)
    samples: Samples = field(default_factory=Samples)

    @property
    def all(self) -> list[Part]:
        return [
            self.funnel,
            self.queries,
            self.documents,
            self.topics,
            self.passages,
            self.spending,
            self.samples,
        ]

    @property
    def words(self) -> Histogram:
        """Lengths of the queries, at least one."""
        return _drawn(self.queries.words, whole=True)

    @property
    def copied(self) -> Histogram:
        """Overlap with the source, of at least one query."""
        return _drawn(self.queries.copied, marks=self.queries.bounds)

    @property
    def margins(self) -> list[tuple[str, Numbers, Histogram]]:
        """The margins of every score, with a line at 0."""
        return [
            (name, numbers, histogram({"kept": numbers.items}, marks=[0.0]))
            for name, numbers in self.passages.margins.items()
            if numbers.seen
        ]

    @property
    def map(self) -> list[Dot]:
        """The topics, at least one point."""
        return scatter(
            [
                (place.x, place.y, "kept" if place.kept else "dropped", place.told)
                for place in self.topics.places.items
            ]
        )

    @property
    def per_document(self) -> list[tuple[str, float]]:
        """The shares of the documents with a kept query that have 1, 2 ... 5 of them or more."""
        times = self.documents.kept.times
        most = 5
        rows = {str(n): times[n] for n in range(1, most)}
        rows[f"{most} or more"] = sum(count for n, count in times.items() if n >= most)
        return [(name, count / times.total()) for name, count in rows.items() if count]

    @property
    def together(self) -> Cost:
        """The cost of all stages."""
        found = Cost()
        for cost in self.spending.stages.values():
            found.calls += cost.calls
            found.prompt_tokens += cost.prompt_tokens
            found.completion_tokens += cost.completion_tokens
            found.statuses += cost.statuses
        return found


def _drawn(pair: Pair, *, whole: bool = False, marks: Iterable[float] = ()) -> Histogram:
    groups = {name: numbers.items for name, numbers in pair.groups.items()}
    return histogram(groups, whole=whole, marks=sorted(marks))


class Prompt(NamedTuple):
    """A template by its name and hash, and how many calls it had; None where that is not told."""

    name: str
    sha256: str
    calls: int | None


def _prompts(spending: Spending, told: object) -> Iterator[Prompt]:
    """The templates of the examples' calls, then those that only the manifest names."""
    for (name, sha256), calls in spending.prompts.items():
        yield Prompt(name, sha256, calls)
    seen = {sha256 for _, sha256 in spending.prompts}
    for slot, given in told.items() if isinstance(told, Mapping) else ():
        sha256 = given.get("sha256", "") if isinstance(given, Mapping) else given
        if sha256 not in seen:
            yield Prompt(str(slot), str(sha256), None)


def _flat(value: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """Names with dots and values of nested mappings; what is empty is left out."""
    for name, inner in value.items():
        path = f"{above}.{name}" if above else str(name)
        if isinstance(inner, Mapping):
            yield from _flat(inner, path)
        elif inner not in (None, "", []):
            yield path, _written(inner)


def _written(value: object) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value, ensure_ascii=False, indent=2 if isinstance(value, Mapping) else None)


# ---- the template ----


@lru_cache(maxsize=1)
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_printable,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "share": _share,
        "figure": _figure,
        "short": _short,
        "money": _money,
        "count": "{:,}".format,
    }
    return environment.from_string((files(__package__) / "page.html").read_text("utf-8"))


def _printable(value: Any) -> Any:  # noqa: ANN401 - whatever the template prints
    return _UNPRINTABLE.sub("\ufffd", value) if type(value) is str else value


def _share(part: float, whole: float = 1) -> str:
    """Per cent, with a place behind the point where that says something."""
    if not whole:
        return "–"
    per_cent = 100 * part / whole
    return f"{per_cent:.0f} %" if per_cent in (0, 100) else f"{per_cent:.1f} %"


def _figure(value: float | None) -> str:
    """A number in as few places as tell it apart."""
    return "–" if value is None else f"{value:.4g}"


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} …"


def _money(cost: Cost, prices: Mapping[str, float]) -> str:
    """What tokens cost at prices per million."""
    prompt = cost.prompt_tokens * prices.get("prompt", 0)
    return f"{(prompt + cost.completion_tokens * prices.get('completion', 0)) / _MILLION:.4f}"
