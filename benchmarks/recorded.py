"""Methods by a judge with a real model's preferences, taken from its recorded answers.

The strengths of all documents of a query, under the Plackett-Luce model, are fitted to every
window that RankVicuna was shown for it, in runs from five first stages. A block is then ordered by
strength plus Gumbel noise of a `scale`, with an advantage for the places shown first: what the
model prefers is real, how it varies is a model of it. A sliding window over the same candidates
says how near that comes to what the model itself reached.

Run: python -m benchmarks.recorded shared/data/dl19
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from random import Random
from statistics import fmean, stdev
from typing import Any

import numpy as np

from benchmarks.agreement import MODELS, Window, agreement, windows
from benchmarks.replay import read_ranked
from llmrank.api import ndcg
from llmrank.plan import Answer, Ask, Choice, Order, Permutation, Pick, drive
from llmrank.rerank import parse
from llmrank.rerank.posterior import Evidence, Posterior
from llmrank.trec import read_qrels
from llmrank.types import Candidate, Document, Query, Status

DEVIATION = 3.0
"""Of the prior of a strength: wide, as the windows are to decide."""

METHODS = (
    "sliding",
    "sliding(passes=2)",
    "tdpart",
    "blitz",
    "tourrank",
    "jointrank(r=3, aggregate=win_rate)",
    "adaptive(then=2)",
    "adaptive",
)


def strengths(found: Sequence[Window]) -> dict[str, float]:
    """What the model thinks of every document of one query, in nats."""
    docs = sorted({doc for window in found for doc in window.shown})
    place = {doc: i for i, doc in enumerate(docs)}
    posterior = Posterior(np.zeros(len(docs)), DEVIATION)
    posterior.observe(
        [Evidence(tuple(place[doc] for doc in w.ordered), len(w.ordered)) for w in found]
    )
    return dict(zip(docs, posterior.mean.tolist(), strict=True))


class Recorded:
    """Orders documents by fitted strengths, noise, and the places they are shown in."""

    def __init__(
        self, fitted: dict[str, dict[str, float]], scale: float, bias: float, seed: int
    ) -> None:
        self.fitted, self.scale, self.bias, self.seed = fitted, scale, bias, seed

    def __call__(self, item: Ask[Any]) -> Answer[Any]:
        assert isinstance(item, Order | Pick)
        order = self.order(item.query.id, [doc.id for doc in item.docs])
        value = Permutation(order) if isinstance(item, Order) else Choice(order[: item.n])
        return Answer(status=Status.OK, value=value)

    def order(self, query: str, docs: Sequence[str]) -> tuple[int, ...]:
        """Places of the documents, best first."""
        random = Random(f"{self.seed}/{query}/{docs}")
        known = self.fitted[query]
        utility = [
            known[doc]
            - self.scale * math.log(-math.log(random.random() or 0.5))
            - self.bias * place / max(1, len(docs) - 1)
            for place, doc in enumerate(docs)
        ]
        return tuple(sorted(range(len(docs)), key=lambda i: -utility[i]))


def main() -> None:
    """Print how like the model the judge is, and a table of methods."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--first-stage", default="BM25")
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--bias", type=float, default=0.0)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--method", action="append", help="instead of the usual ones")
    given = parser.parse_args()
    qrels = read_qrels(given.folder / "qrels.tsv")
    found = [w for w in windows(given.folder, MODELS[0]) if w.query in qrels]
    fitted = {q: strengths([w for w in found if w.query == q]) for q in {w.query for w in found}}
    judge = Recorded(fitted, given.scale, given.bias, 0)
    again = [
        w._replace(ordered=tuple(w.shown[i] for i in judge.order(w.query, w.shown))) for w in found
    ]
    for name, its in (("model", agreement(found, qrels)), ("judge", agreement(again, qrels))):
        print(f"{name}: alike {its.alike:.3f}, swapped {its.swapped:.3f}, by grade {its.right:.3f}")  # noqa: T201
    first = read_ranked(given.folder / "runs" / f"{given.first_stage}.trec")
    candidates = {q: [Candidate(Document(doc, "")) for doc in first[q][:100]] for q in fitted}
    candidates = {q: c for q, c in candidates.items() if all(d.document.id in fitted[q] for d in c)}
    print(f"{len(candidates)} queries")  # noqa: T201
    for method in given.method or METHODS:
        ranker = parse(method)
        means = []
        for seed in range(given.seeds):
            judge = Recorded(fitted, given.scale, given.bias, seed)
            values = []
            for query, docs in candidates.items():
                order = drive(ranker.plan(Query(query, ""), docs), judge).order
                grades = [qrels[query].get(docs[i].document.id, 0) for i in order]
                values.append(ndcg(grades, qrels[query].values()))
            means.append(fmean(values))
        error = stdev(means) / math.sqrt(len(means)) if len(means) > 1 else 0.0
        sys.stdout.write(f"| `{method}` | {fmean(means):.4f} ± {error:.4f} |\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
