"""How steady are real listwise rerankers? Agreement with themselves where windows overlap.

Two windows of one model and query that share documents order the shared pairs twice. The share of
pairs ordered alike is compared with what a simulated judge of known noise does on the very same
windows: that says how much of a real model's error is the same in every call (`Noise.fixed`).
Recorded answers of one model come from several first stages, so a pair meets in many contexts.

Run: python -m benchmarks.agreement shared/data/dl19
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from benchmarks.replay import read_log
from llmrank.api.simulation import Case, Noise, Simulated, falling
from llmrank.plan import Order
from llmrank.prompts.replies import read_order
from llmrank.trec import read_qrels
from llmrank.types import Document, Query

MODELS = ("rank_vicuna_7b_v1", "vicuna-7b-checkpoint-800")
FIXED = (0.0, 0.5, 0.75, 0.9, 1.0)
Qrels = Mapping[str, Mapping[str, int]]


class Window(NamedTuple):
    """Documents as they were shown, in whose run, and as they were ordered."""

    first_stage: str
    query: str
    shown: tuple[str, ...]
    ordered: tuple[str, ...]


class Agreement(NamedTuple):
    """Shares of pairs ordered alike in two windows that showed them alike, or the other way round.

    `right` is the share of pairs of different grades that were ordered by grade.
    """

    alike: float
    swapped: float
    right: float
    pairs: int


def windows(folder: Path, model: str) -> list[Window]:
    """Every window of a model that was answered in full; one shown twice counts once."""
    found: dict[tuple[str, tuple[str, ...]], Window] = {}
    for path in sorted((folder / "llm_responses").glob(f"*__{model}__*.jsonl.gz")):
        log = read_log(path)
        for query, rows in log.windows.items():
            for shown, text in rows.values():
                value = read_order(text, len(shown))[1]
                if value is not None and value.named is None:
                    order = tuple(shown[i] for i in value.order)
                    stage = log.name.partition("__")[0]
                    found.setdefault((query, shown), Window(stage, query, shown, order))
    return list(found.values())


def agreement(found: Iterable[Window], qrels: Qrels) -> Agreement:
    """Compare windows that began in different first stages, so that none was fed by the other."""
    seen: dict[tuple[str, str, str], list[tuple[str, bool, bool]]] = defaultdict(list)
    right = judged = 0
    for window in found:
        shown = {doc: place for place, doc in enumerate(window.shown)}
        grades = qrels.get(window.query, {})
        for better, worse in itertools.combinations(window.ordered, 2):
            a, b = sorted((better, worse))
            first = shown[a] < shown[b]
            seen[window.query, a, b].append((window.first_stage, first, better == a))
            if grades.get(a, 0) != grades.get(b, 0):
                judged += 1
                right += grades.get(better, 0) > grades.get(worse, 0)
    counts = {True: [0, 0], False: [0, 0]}
    for views in seen.values():
        for one, other in itertools.combinations(views, 2):
            if one[0] != other[0]:
                count = counts[one[1] == other[1]]
                count[0] += one[2] == other[2]
                count[1] += 1
    (alike, n), (swapped, m) = counts[True], counts[False]
    return Agreement(alike / n, swapped / m, right / judged, n + m)


def simulated(found: Sequence[Window], qrels: Qrels, noise: Noise) -> Agreement:
    """The same windows, ordered by a simulated judge."""
    docs = {query: Query(query, "") for query in qrels}
    judge = Simulated([Case(docs[query], (), qrels[query]) for query in docs], noise)
    again = []
    for window in found:
        item = Order(docs[window.query], tuple(Document(doc, "") for doc in window.shown))
        answer = judge(item).value
        assert answer is not None
        again.append(window._replace(ordered=tuple(window.shown[i] for i in answer.order)))
    return agreement(again, qrels)


def fitted(
    found: Sequence[Window], qrels: Qrels, fixed: float, real: Agreement
) -> tuple[Noise, Agreement]:
    """The judge with this fixed share that is right as often as the model, and as biased."""
    noise, gap = Noise(1.0, fixed), real.swapped - real.alike

    def right(deviation: float) -> float:
        return simulated(found, qrels, replace(noise, deviation=deviation)).right

    def apart(bias: float) -> float:
        again = simulated(found, qrels, replace(noise, bias=bias))
        return again.swapped - again.alike

    for _ in range(2):
        noise = replace(noise, deviation=falling(right, real.right, 0.05, 8.0, steps=9))
        noise = replace(noise, bias=falling(apart, gap, 0.0, 8.0, steps=9))
    return noise, simulated(found, qrels, noise)


def main() -> None:
    """Print a table: the models, and judges fitted to the first of them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    qrels = read_qrels(folder / "qrels.tsv")
    write = sys.stdout.write
    write("| judge | pairs alike, shown alike | shown swapped | by grade | pairs |\n")
    write("|---|---|---|---|---|\n")
    found = {model: [w for w in windows(folder, model) if w.query in qrels] for model in MODELS}
    real = {model: agreement(found[model], qrels) for model in MODELS}
    for model, its in real.items():
        write(f"| {model} | {_row(its)} | {its.pairs:,} |\n")
    model = MODELS[0]
    for fixed in FIXED:
        noise, again = fitted(found[model], qrels, fixed, real[model])
        name = f"noise {noise.deviation:.2f}, {fixed:.0%} fixed, bias {noise.bias:.2f}"
        write(f"| {name} | {_row(again)} | |\n")
        sys.stdout.flush()


def _row(found: Agreement) -> str:
    return f"{found.alike:.3f} | {found.swapped:.3f} | {found.right:.3f}"


if __name__ == "__main__":
    main()
