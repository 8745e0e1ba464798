"""What every method costs and reaches with a simulated judge: docs/frontier.md and frontier.svg.

Candidates and grades are real; the judge's noise is such that one pass of a sliding window reaches
nDCG@10 .74 (strong) or .68 (medium). Run (some minutes):
python benchmarks/frontier.py --data FOLDER [--seeds 5] [--method SPEC ...]
The folder holds runs/BM25.trec and qrels.tsv.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from llmrank.api.simulation import Case, Noise, Prediction, falling, judged_cases, simulate
from llmrank.rerank import METHODS, Cascade, Method, Ranker, parse
from llmrank.spec import written

DEPTH = 100
REFERENCE = "sliding(window=20, stride=10)"
JUDGES = {"strong": 0.74, "medium": 0.68}
CALIBRATION_SEEDS = 20
EXTRAS = (
    "sliding(passes=2)",
    "sliding(passes=3)",
    "adaptive(then=2)",
    "adaptive(cover=2)",
    "tourrank(tournaments=2)",
    "tourrank(tournaments=5)",
    "jointrank(r=3, aggregate=win_rate)",
    "jointrank(r=5, aggregate=win_rate)",
    "blitz(k=10)",
    "setwise(c=19)",
)
"""Beside the defaults of every method."""


OTHER = "## Other numbers of candidates"
"""From this heading on the page is kept as it is: `llmrank simulate` makes that part."""


class Point(NamedTuple):
    """A method with both judges."""

    name: str
    strong: Prediction
    medium: Prediction


def rankers(given: Sequence[str]) -> list[Ranker]:
    """Every method but combinators with its defaults, the extras that exist, and those given."""
    found = [parse(name) for name, family in METHODS.items() if not family.inner]
    found += map(parse, (*EXTRAS, *given))
    return list({str(ranker): ranker for ranker in found}.values())


def short(ranker: Ranker) -> str:
    """The name with those parameters alone that differ from the defaults."""
    if isinstance(ranker, Cascade):
        return " >> ".join(map(short, ranker.stages))
    inner = short(ranker.inner) if ranker.inner is not None else ""
    usual = Method(ranker.name, inner=ranker.inner).parameters
    changed = {key: value for key, value in ranker.parameters.items() if value != usual[key]}
    depth = "" if ranker.depth == DEPTH else f"@{ranker.depth}"
    return written(ranker.name, changed, inner) + depth


def calibrated(cases: Sequence[Case], wanted: float, fixed: float) -> Noise:
    """The noise with which the reference reaches the wanted nDCG@10, by bisection."""
    method = [parse(REFERENCE)]

    def reached(deviation: float) -> float:
        noise = Noise(deviation, fixed)
        return simulate(method, cases, noise, seeds=CALIBRATION_SEEDS)[-1].ndcg.mean

    return Noise(falling(reached, wanted, 0.0, 6.0, steps=12), fixed)


def measured(
    methods: Sequence[Ranker], cases: Sequence[Case], noises: Sequence[Noise], seeds: int
) -> Iterator[Point]:
    """One point after another, the first stage first."""
    names = [short(method) for method in methods]
    (first,) = simulate([], cases, noises[0], seeds=seeds)
    yield Point(first.method, first, first)
    for name, method in zip(names, methods, strict=True):
        both = [simulate([method], cases, noise, seeds=seeds)[-1] for noise in noises]
        print(f"{name}: {both[0].ndcg.mean:.3f} {both[1].ndcg.mean:.3f}", file=sys.stderr)  # noqa: T201
        yield Point(name, *both)


# ---- the page ----


def page(points: Sequence[Point], noises: Sequence[Noise], queries: int, seeds: int) -> str:
    """docs/frontier.md."""
    strong, medium = noises
    wanted = " or ".join(f"{value:.2f}" for value in JUDGES.values())
    rows = "\n".join(row(point) for point in points)
    return f"""# What methods cost and reach, simulated

Real candidates and grades of {queries} queries (BM25's top {DEPTH}), a simulated judge. The utility
of a document is its grade plus noise, of whose variance the share {strong.fixed:g} is the same in
every call (Gaussian) and the rest new in each (Gumbel); a call orders documents by utility. The
deviation of the noise is {strong.deviation:.2f} grade steps (strong) or \
{medium.deviation:.2f} (medium), found by bisection so that
one pass of a sliding window reaches nDCG@10 {wanted} over {CALIBRATION_SEEDS} seeds (standard \
error .003). Calls,
rounds and documents shown are means per query with the strong judge. Figures are means over
{seeds} seeds, ± one standard error over seeds, the queries taken as given.

| method | calls | rounds | documents shown | nDCG@10, strong | nDCG@10, medium |
|---|---|---|---|---|---|
{rows}

![nDCG@10 against calls and rounds](frontier.svg)

This is a model of judges, not a measurement of one: it knows neither position bias nor unequal
passages nor replies that cannot be read. Every kind of question is answered from the same
utilities, however many documents it shows, while a real model is better at some than at others.
`python benchmarks/frontier.py --data FOLDER` made this page; `llmrank simulate` does the same for
methods, data and noise of your own.
"""


def row(point: Point) -> str:
    """One line of the table."""
    found = point.strong
    costs = (number(value) for value in (found.calls, found.rounds, found.shown))
    scores = (
        f"{p.ndcg.mean:.3f}" + (f" ± {p.error:.3f}" if p.error else "")
        for p in (point.strong, point.medium)
    )
    return f"| {' | '.join((point.name, *costs, *scores))} |"


def number(value: float) -> str:
    """With one decimal where it is no whole number."""
    return f"{value:,.1f}".removesuffix(".0")


# ---- the picture ----

WIDTH, HEIGHT, MARGIN, LINE = 620, 460, 48, 11
Box = tuple[float, float, float, float]


class Panel(NamedTuple):
    """One diagram: points (x, y, name) between the ends of a logarithmic and a linear axis."""

    points: Sequence[tuple[float, float, str]]
    title: str
    left: float
    most: float
    low: float
    high: float

    def x(self, value: float) -> float:
        """Where a cost stands."""
        share = math.log(value) / math.log(self.most)
        return self.left + MARGIN + share * (WIDTH - 2 * MARGIN)

    def y(self, value: float) -> float:
        """Where a quality stands."""
        share = (value - self.low) / (self.high - self.low)
        return HEIGHT - MARGIN - share * (HEIGHT - 2 * MARGIN)

    def svg(self) -> Iterator[str]:
        """Axes, Pareto line, points and labels."""
        yield from self._axes()
        best = pareto([(x, y) for x, y, _ in self.points])
        steps = "".join(f"H{self.x(x):.1f}V{self.y(y):.1f}" for x, y in best)
        start = f"M{self.x(best[0][0]):.1f} {self.y(best[0][1]):.1f}"
        yield f'<path d="{start}{steps}" fill="none" stroke="#c33" stroke-dasharray="4 3"/>'
        at = [(self.x(x), self.y(y), name) for x, y, name in self.points]
        for x, y, _ in at:
            yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="#246"/>'
        for x, y, name in labels(at, self.left + MARGIN, self.left + WIDTH):
            yield f'<text x="{x:.1f}" y="{y:.1f}">{escape(name)}</text>'

    def _axes(self) -> Iterator[str]:
        right, top, bottom = self.left + WIDTH - MARGIN, MARGIN, HEIGHT - MARGIN
        corner = self.left + MARGIN
        yield f'<path d="M{corner} {top}V{bottom}H{right}" fill="none" stroke="#888"/>'
        middle = (corner + right) / 2
        yield f'<text x="{middle}" y="{bottom + 34}" text-anchor="middle">{self.title}</text>'
        yield f'<text x="{corner - 34}" y="{top - 12}">nDCG@10</text>'
        for value in (m * 10**e for e in range(5) for m in (1, 2, 5)):
            if value <= self.most:
                x = self.x(value)
                yield f'<path d="M{x:.1f} {bottom}v4" stroke="#888"/>'
                yield f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{value:,}</text>'
        for step in range(math.ceil(self.low * 50), math.floor(self.high * 50 + 1e-9) + 1):
            y = self.y(step / 50)
            yield f'<path d="M{corner} {y:.1f}H{right}" stroke="#eee"/>'
            yield f'<text x="{corner - 6}" y="{y + 3:.1f}" text-anchor="end">{step / 50:.2f}</text>'


def pareto(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points that no other one equals or beats at the same or a lower cost, cheapest first."""
    found: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda point: (point[0], -point[1])):
        if not found or y > found[-1][1]:
            found.append((x, y))
    return found


def labels(
    points: Sequence[tuple[float, float, str]], left: float, right: float
) -> Iterator[tuple[float, float, str]]:
    """Where each name is written: the nearest place beside its point that nothing else covers."""
    taken: list[Box] = [(x - 3, y - 3, x + 3, y + 3) for x, y, _ in points]
    for x, y, name in points:
        width = 5.4 * len(name)
        places = [
            (start, y + 3 + shift)
            for shift in sorted(range(-120, 121, 4), key=abs)
            for start in (x + 6, x - 6 - width)
            if left <= start and start + width <= right
        ]
        boxes = [(start, base - LINE + 2, start + width, base + 2) for start, base in places]
        free = [not any(overlap(box, other) for other in taken) for box in boxes]
        chosen = free.index(True) if True in free else 0
        taken.append(boxes[chosen])
        yield *places[chosen], name


def overlap(a: Box, b: Box) -> bool:
    """Whether two boxes (left, top, right, bottom) share a point."""
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def picture(points: Sequence[Point]) -> str:
    """docs/frontier.svg: quality with the strong judge against calls and against rounds."""
    found = [(point.name, point.strong) for point in points if point.strong.calls]
    means = [prediction.ndcg.mean for _, prediction in found]
    low, high = math.floor(min(means) * 50) / 50, math.ceil(max(means) * 50) / 50 + 0.01
    costs: dict[str, Callable[[Prediction], float]] = {
        "calls per query": lambda prediction: prediction.calls,
        "rounds per query, one after another": lambda prediction: prediction.rounds,
    }
    parts: list[str] = []
    for place, (title, cost) in enumerate(costs.items()):
        drawn = [(cost(prediction), prediction.ndcg.mean, name) for name, prediction in found]
        most = max(2.0, *(x for x, _, _ in drawn))
        parts += Panel(drawn, title, place * WIDTH, most, low, high).svg()
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * WIDTH} {HEIGHT}" '
        f'font-family="sans-serif" font-size="10">\n'
        f'<rect width="100%" height="100%" fill="#fff"/>\n{body}\n</svg>\n'
    )


def main() -> None:
    """Calibrate, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--limit", type=int, help="only the first queries")
    parser.add_argument("--fixed", type=float, default=0.5)
    parser.add_argument("--method", action="append", default=[])
    parser.add_argument("--only", action="store_true", help="print the rows of --method alone")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs")
    given = parser.parse_args()
    cases = judged_cases(
        given.data / "runs/BM25.trec", given.data / "qrels.tsv", n=DEPTH, limit=given.limit
    )
    noises = [calibrated(cases, wanted, given.fixed) for wanted in JUDGES.values()]
    if given.only:
        for point in measured([*map(parse, given.method)], cases, noises, given.seeds):
            print(row(point), flush=True)  # noqa: T201
        return
    points = list(measured(rankers(given.method), cases, noises, given.seeds))
    text = page(points, noises, len(cases), given.seeds)
    target = given.out / "frontier.md"
    _, heading, other = target.read_text("utf-8").partition(OTHER) if target.exists() else ("",) * 3
    target.write_text(text + ("\n" + heading + other if heading else ""), encoding="utf-8")
    (given.out / "frontier.svg").write_text(picture(points), encoding="utf-8")


if __name__ == "__main__":
    main()
