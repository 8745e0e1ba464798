"""Search, rerank and evaluate a small collection with a real model in this process.

Every step is one command of the command line, printed before it runs.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

from llmrank import trec

WIDTH = 46
SHOWN = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--collection", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--depth", type=int, default=20)
    given = parser.parse_args()
    collection, folder = given.collection, given.out / "likelihood"
    given.out.mkdir(parents=True, exist_ok=True)
    data = ["--corpus", str(collection), "--queries", str(collection)]
    first = str(given.out / "bm25.trec")
    method = f"likelihood(prior=0.5)@{given.depth}"
    run("search", *data, "--out", first)
    run("rerank", "--run", first, *data, "--method", method, "--out", str(folder))
    run("eval", first, str(folder), "--qrels", str(collection))
    side_by_side(collection, Path(first), folder / "run.trec")
    say(f"\nThe run folder is {folder}: manifest, run, scores, summary, journal of all answers.")


def run(*arguments: str) -> None:
    """One command of llmrank, as a user would type it."""
    say(f"\n$ llmrank {shlex.join(arguments)}")
    command = [sys.executable, "-m", "llmrank.cli", *arguments]
    done = subprocess.run(command, check=False)
    if done.returncode:
        sys.exit(done.returncode)


def side_by_side(collection: Path, before: Path, after: Path) -> None:
    """The list of the query that gained the most relevant documents, before and after."""
    qrels = trec.read_qrels(collection)
    old, new = dict(trec.read_run(before)), dict(trec.read_run(after))
    grades = {q: [qrels[q].get(d, 0) for d, _ in new[q][:3]] for q in new if q in qrels}
    query_id = max(grades, key=lambda q: sum(grades[q]) - _top(old[q], qrels[q]))
    query = next(q for q in trec.read_queries(collection) if q.id == query_id)
    texts = trec.read_texts(collection, {d for d, _ in (*old[query_id], *new[query_id])})
    say(f"\nThe query that gained most, {query_id}: {query.text}")
    say("(in brackets the grade from 0 to 3; a dot is unjudged)\n")
    say(f"    {'BM25':{WIDTH}}  reranked")
    pairs = zip(old[query_id][:SHOWN], new[query_id][:SHOWN], strict=False)
    for rank, lines in enumerate(pairs, start=1):
        cells = [
            f"[{qrels[query_id].get(d, '.')}] {texts[d].title or texts[d].text}"[:WIDTH]
            for d, _ in lines
        ]
        say(f"{rank:2}. {cells[0]:{WIDTH}}  {cells[1]}")


def _top(hits: trec.Hits, judged: dict[str, int]) -> int:
    return sum(judged.get(doc_id, 0) for doc_id, _ in hits[:3])


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
