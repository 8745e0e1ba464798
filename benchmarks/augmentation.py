"""What every query augmentation does to judged collections: nDCG@10, won and lost, calls, tokens.

    python benchmarks/augmentation.py DATA [DATA ...] --out FOLDER [--model M --base-url URL]

DATA is a collection in BEIR's layout with `qrels.tsv`; FOLDER keeps the indexes and the runs: the
same command goes on where it was stopped, and what one row has paid for another one reuses.
Differences are to the plain query by the same first stage, with a 95 % bootstrap interval; the
lines of the hybrids compare with BM25 and with dense retrieval.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from llmrank import evaluate, trec

GRF = "grf(tasks=document+facts+keywords)"
GRF_PRF = "grf(tasks=document+facts+keywords, prf=true)"
HYDE = "hyde(n=2)"
METHODS = (
    ("bm25", "rm3"),
    ("bm25", "gated(rm3, by=scores, above=0.3, below=9)"),
    ("bm25", "query2doc"),
    ("bm25", "gated(query2doc)"),
    ("dense", "query2doc"),
    ("dense", HYDE),
    ("dense", f"gated({HYDE})"),
    ("bm25", "subqueries"),
    ("bm25", "gated(subqueries)"),
    ("dense", "subqueries"),
    ("hybrid", "subqueries"),
    ("dense", "vector_prf"),
    ("bm25", GRF),
    ("bm25", f"gated({GRF})"),
    ("bm25", GRF_PRF),
)
FUSIONS = ("rrf", "product")
MEASURE = evaluate.MEASURES[0]


def main() -> None:
    """Measure collection by collection and print a Markdown table for each."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="local:,dtype=bfloat16")
    parser.add_argument("--base-url")
    parser.add_argument("--in-flight", default="64")
    parser.add_argument("--method", action="append", help="FIRST_STAGE:METHOD, instead of all")
    given = parser.parse_args()
    wanted = [tuple(one.split(":", 1)) for one in given.method or ()] or METHODS
    model = ["--model", given.model, "--in-flight", given.in_flight]
    model += ["--base-url", given.base_url] if given.base_url else []
    for data in given.data:
        name = data.resolve().name
        write(f"\n{name}\n")
        write("| first stage | augmentation | nDCG@10 | difference | won/lost | asks | tokens |")
        write("|---|---|---:|---|---:|---:|---:|")
        for line in (
            *searched(data, given.out / name),
            *augmented(data, given.out / name, wanted, model),
        ):
            write(line)


def searched(data: Path, out: Path) -> Iterator[str]:
    """The plain searches; those by both indexes against each of its parts."""
    qrels = trec.read_qrels(data / "qrels.tsv")

    def measured(stage: str, *options: str) -> dict[str, float]:
        run = out / f"{slug(' '.join((stage, *options)))}.trec"
        llmrank("search", *place(data, out), "--first-stage", stage, *options, "--out", str(run))
        values = evaluate.measure(dict(trec.read_run(run)), qrels, (MEASURE,))[MEASURE]
        return {query: values[query] for query in queries if query in values}

    queries = [query.id for query in trec.read_queries(data)]
    parts = {stage: measured(stage) for stage in ("bm25", "dense")}
    for stage, values in parts.items():
        yield f"| {stage} | | {mean(values):.4f} | | | | |"
    for fusion in FUSIONS:
        both = measured("hybrid", "--fusion", fusion)
        for stage, values in parts.items():
            found = evaluate.compare(both, values)
            told = f"{found.difference:+.4f} {interval(found.interval)} over {stage}"
            won = f"{found.wins}/{found.losses}"
            yield f"| hybrid, {fusion} | | {mean(both):.4f} | {told} | {won} | | |"


def augmented(
    data: Path, out: Path, wanted: Sequence[Sequence[str]], model: Sequence[str]
) -> Iterator[str]:
    """One line for each augmentation."""
    count = sum(1 for _ in trec.read_queries(data))
    for stage, method in wanted:
        folder = out / "runs" / slug(f"{stage} {method}")
        options = "--first-stage", stage, "--qrels", str(data / "qrels.tsv")
        given = "--method", method, "--out", str(folder), "--max-failures", "1"
        llmrank("expand", *place(data, out), *options, *given, *model)
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        effect = summary["effect"]
        # What another row has paid for counts here too.
        parts = ("prompt_tokens", "completion_tokens")
        tokens = sum(summary[part] + summary[f"reused_{part}"] for part in parts)
        yield (
            f"| {stage} | `{method}` | {effect['mean_a']:.4f} "
            f"| {effect['difference']:+.4f} {interval(effect['interval'])} "
            f"| {effect['wins']}/{effect['losses']} "
            f"| {summary['asks'] / count:.1f} | {tokens / count:.0f} |"
        )


def place(data: Path, out: Path) -> list[str]:
    """The options that say what is searched."""
    return ["--queries", str(data), "--corpus", str(data), "--index", str(out / "index")]


def llmrank(*arguments: str) -> None:
    """Run a command of ours; its last words where it fails."""
    command = [sys.executable, "-m", "llmrank.cli", *arguments]
    done = subprocess.run(command, capture_output=True, check=False, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)}\n{done.stderr[-2000:]}")


def slug(text: str) -> str:
    """A file name for a method."""
    return re.sub("[^a-z0-9]+", "_", text).strip("_")


def mean(values: dict[str, float]) -> float:
    """The mean over queries."""
    return sum(values.values()) / len(values)


def interval(ends: Sequence[float] | None) -> str:
    """An interval as it is printed; nothing for a single query, which has none."""
    if ends is None:
        return ""
    return f"[{ends[0]:+.4f}, {ends[1]:+.4f}]"


def write(line: str) -> None:
    """One line of the table, at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
