"""Every reranking method by one real model: nDCG@10, calls, tokens, rounds, seconds, outcomes.

Seconds are wall time with a server, and CPU time of this process, which other work on the machine
hardly changes, with a model in process.

    python benchmarks/methods.py --data FOLDER --run FOLDER/runs/BM25.trec

FOLDER is a collection in BEIR's layout with `qrels.tsv`. Depth and blocks are small, so that every
method runs on a laptop in its turn, and every block method makes several calls a query.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import fmean

from llmrank import api, rerank, trec
from llmrank.backends import connect
from llmrank.errors import LlmrankError
from llmrank.plan import Plan
from llmrank.types import Ordering, Tally

METHODS = (
    "likelihood",
    "likelihood(prior=0.5)",
    "yesno",
    "grade(labels=4)",
    "grade(labels=1-5, score=peak)",
    "full",
    "full(by=labels)",
    "sliding(window=5, stride=2)",
    "sliding(window=5, stride=2, by=labels)",
    "setwise(k=5)",
    "setwise(k=5, by=labels)",
    "setwise_bubblesort(k=3, by=labels)",
    "setwise_insertion(k=5, by=labels)",
    "prp(sliding=3)",
    "prp(sliding=3, by=labels)",
    "prp_allpair(by=labels)",
    "prp_heapsort(k=5, by=labels)",
    "prp_soft",
    "tdpart(window=5, pivot=3, by=labels)",
    "tourrank(window=5, by=labels)",
    "listt5(k=5, by=labels)",
    "jointrank(k=5, by=labels)",
    "jointrank(k=5, aggregate=bradley_terry, by=labels)",
    "blitz(k=5, m=5, by=labels)",
    "acurank(window=5, k=5, uncertain=3, budget=12, by=labels)",
    "adaptive(k=5)",
    "adaptive(k=5, by=labels)",
    "psc(full(by=labels), samples=5)",
    "passages(likelihood, words=20, overlap=5)",
    "likelihood@10 >> sliding(window=5, stride=2, by=labels)@5",
)


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--model", default="local:,dtype=bfloat16")
    parser.add_argument("--base-url")
    parser.add_argument("--queries", type=int, default=20)
    parser.add_argument("--depth", type=int, default=10)
    parser.add_argument("--passage-words", type=int, default=40)
    parser.add_argument("--method", action="append", help="instead of all")
    given = parser.parse_args()
    settings = api.Settings(given.model, given.base_url, passage_words=given.passage_words)
    qrels = trec.read_qrels(given.data / "qrels.tsv")
    source = api.RunInput(given.run, given.data, given.data, given.queries)
    inputs = api.Inputs(source, given.depth)
    first = {query: [doc for doc, _ in hits] for query, hits in inputs.groups()}
    with api.Session(settings, model=connect(given.model, base_url=given.base_url)) as session:
        write("| method | nDCG@10 | calls | rounds | tokens | seconds | outcomes |")
        write("|---|---|---|---|---|---|---|")
        write(f"| first stage | {ndcg(first, qrels):.3f} | | | | | |")
        for name in given.method or METHODS:
            deep = name if "@" in name else f"{name}@{given.depth}"
            clock = time.perf_counter if given.base_url else time.process_time
            write(measured(session, rerank.parse(deep), inputs, qrels, clock))


def measured(
    session: api.Session,
    method: rerank.Ranker,
    inputs: api.Inputs,
    qrels: dict[str, dict[str, int]],
    clock: Callable[[], float],
) -> str:
    """One row of the table."""
    ranked: dict[str, list[str]] = {}
    total = Tally()

    def plans() -> list[tuple[str, Plan[Ordering]]]:
        return list(inputs.plans(method))

    def finished(query: str, ordering: Ordering, tally: Tally) -> None:
        nonlocal total
        total += tally
        ranked[query] = [hits[query][i][0] for i in ordering.order]

    hits = dict(inputs.groups())
    started = clock()
    try:
        session.check(method.needs)
        session.run_sync(plans(), finished)
    except LlmrankError as error:
        return f"| `{method}` | {error} | | | | | |"
    seconds = clock() - started
    queries = len(ranked)
    outcomes = ", ".join(f"{count} {status}" for status, count in total.outcomes.items())
    return (
        f"| `{method}` | {ndcg(ranked, qrels):.3f} | {total.asks / queries:.1f} "
        f"| {total.rounds} | {total.usage.total / queries:,.0f} | {seconds / queries:.1f} "
        f"| {outcomes} |"
    )


def ndcg(ranked: dict[str, list[str]], qrels: dict[str, dict[str, int]]) -> float:
    """Mean nDCG@10 over the queries."""
    return fmean(
        api.ndcg([qrels[query].get(doc, 0) for doc in docs], qrels[query].values())
        for query, docs in ranked.items()
    )


def write(line: str) -> None:
    """A line of the table, at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
