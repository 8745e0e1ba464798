"""Replay of recorded listwise rerankers: do our windows and readers give the runs they led to?

For every log of a folder with `llm_responses/*.jsonl.gz`, `rerank_runs/*.trec.gz` and `qrels.tsv`,
`sliding(window=20, stride=10)` is driven from the first-stage run with the recorded answers, found
by query and by the passages shown, so that a window which was never shown is noticed.

Where a first-stage run is missing, it is put together from what each window of the log showed anew,
and the places below the depth, which no window touches, are not compared.

Read by `digits`, as the recorded reranker did, the answers must lead to the recorded run. The
anchored reader would have led to other windows, whose answers nobody recorded: its nDCG@10 is that
of the last window alone, as shown, which decides the first 20 places; what came into that window
is the recorded reader's doing. Where it finds no ranking, the window stays as shown.

Run: python benchmarks/replay.py shared/data/dl19
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmrank.evaluate import measure
from llmrank.plan import Answer, Ask, Order, drive
from llmrank.prompts.replies import Outcome, read_digits, read_order
from llmrank.rerank.listwise import sliding
from llmrank.trec import read_qrels, read_run_lines
from llmrank.types import Candidate, Document, Query, Status

WINDOW, STRIDE = 20, 10
Run = Mapping[str, Sequence[str]]
Reader = Callable[[str, int], Outcome]


@dataclass(frozen=True, slots=True)
class Log:
    """The answers of one recorded run: by query, by the first position of the window."""

    name: str
    windows: Mapping[str, Mapping[int, tuple[tuple[str, ...], str]]]

    @property
    def depth(self) -> int:
        """How many candidates the reranker looked at."""
        return WINDOW + max(start for shown in self.windows.values() for start in shown)

    def recorded(self) -> Iterator[tuple[tuple[str, ...], str]]:
        """Every window as shown, with its answer."""
        for windows in self.windows.values():
            yield from windows.values()

    def first_stage(self) -> Run:
        """What the first stage put first, down to the depth: what each window showed anew."""
        return {query: tuple(_newcomers(shown)) for query, shown in self.windows.items()}


def _newcomers(windows: Mapping[int, tuple[tuple[str, ...], str]]) -> Iterator[str]:
    last = max(windows)
    for start in sorted(windows):
        shown = windows[start][0]
        yield from shown if start == last else shown[:STRIDE]


def read_log(path: Path) -> Log:
    """A log of one JSON object a window: `qid`, `start`, `docids`, `response`."""
    windows: dict[str, dict[int, tuple[tuple[str, ...], str]]] = {}
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            shown = windows.setdefault(row["qid"], {})
            shown[row["start"]] = (tuple(row["docids"]), row["response"])
    return Log(path.name.removesuffix(".jsonl.gz"), windows)


def read_ranked(path: Path) -> Run:
    """The documents of each query as the lines of a run stand: ranks are right where scores tie."""
    run: dict[str, list[str]] = {}
    for _, line in read_run_lines(path):
        run.setdefault(line.query_id, []).append(line.doc_id)
    return run


@dataclass(slots=True)
class Replay:
    """A judge that answers a window with what was recorded for these very passages."""

    log: Log
    reader: Reader
    unseen: int = 0
    _answers: dict[tuple[str, tuple[str, ...]], str] = field(init=False)

    def __post_init__(self) -> None:
        self._answers = {
            (query, shown): text
            for query, windows in self.log.windows.items()
            for shown, text in windows.values()
        }

    def __call__(self, item: Ask[Any]) -> Answer[Any]:
        assert isinstance(item, Order)
        text = self._answers.get((item.query.id, tuple(doc.id for doc in item.docs)))
        if text is None:
            self.unseen += 1
            return Answer(status=Status.FAILED, problem="never recorded")
        status, value, problem = self.reader(text, len(item.docs))
        return Answer(status=status, value=value, problem=problem)

    def run(self, first_stage: Run) -> Run:
        """Rerank every query of the log; a window that was never shown keeps its order."""
        found = {}
        for query in self.log.windows:
            candidates = [Candidate(Document(doc, "")) for doc in first_stage[query]]
            # Not a `Method`, which asks again: what was recorded was asked once.
            head = candidates[: self.log.depth]
            plan = sliding(Query(query, ""), head, window=WINDOW, stride=STRIDE)
            order = drive(plan, self).order
            rest = first_stage[query][self.log.depth :]
            found[query] = (*(first_stage[query][i] for i in order), *rest)
        return found


def last_window(log: Log, run: Run, reader: Reader) -> Run:
    """The run with the last window, as it was shown, in the order in which a reader reads it."""
    found = {}
    for query, windows in log.windows.items():
        shown, text = windows[0]
        value = reader(text, len(shown))[1]
        order = range(len(shown)) if value is None else value.order
        found[query] = (*(shown[i] for i in order), *run[query][len(shown) :])
    return found


@dataclass(frozen=True, slots=True)
class Row:
    """What one log says: `-` in the table where it led to no recorded run.

    `differing` answers are read differently by the two readers; `unseen` windows would the
    anchored reader have shown, which were never recorded.
    """

    name: str
    given: bool
    queries: int
    reproduced: int | None
    answers: int
    differing: int
    unseen: int
    digits: float
    anchored: float


def replay(folder: Path, path: Path, qrels: Mapping[str, Mapping[str, int]]) -> Row:
    """Replay one log with both readers."""
    log = read_log(path)
    first = folder / "runs" / f"{log.name.partition('__')[0]}.trec"
    first_stage = read_ranked(first) if first.is_file() else log.first_stage()
    lenient, anchored = Replay(log, read_digits), Replay(log, read_order)
    ours = lenient.run(first_stage)
    if lenient.unseen:
        raise SystemExit(f"{log.name}: {lenient.unseen} windows are not those recorded")
    anchored.run(first_stage)
    recorded = folder / "rerank_runs" / f"{log.name}.trec.gz"
    reproduced = None
    if recorded.is_file():
        theirs = read_ranked(recorded)
        # A first stage read from the log ends at the depth; below it nothing was reranked.
        reproduced = sum(tuple(theirs[query][: len(ours[query])]) == ours[query] for query in ours)
    pairs = [(text, len(shown)) for shown, text in log.recorded()]
    return Row(
        name=log.name,
        given=first.is_file(),
        queries=len(ours),
        reproduced=reproduced,
        answers=len(pairs),
        differing=sum(_order(read_digits, *pair) != _order(read_order, *pair) for pair in pairs),
        unseen=anchored.unseen,
        digits=ndcg(ours, qrels),
        anchored=ndcg(last_window(log, ours, read_order), qrels),
    )


def _order(reader: Reader, text: str, count: int) -> tuple[int, ...]:
    """The order a window is left in."""
    value = reader(text, count)[1]
    return tuple(range(count)) if value is None else tuple(value.order)


def ndcg(run: Run, qrels: Mapping[str, Mapping[str, int]]) -> float:
    """Mean nDCG@10 over the judged queries."""
    scored = {q: [(doc, -float(rank)) for rank, doc in enumerate(run[q])] for q in run}
    values = measure(scored, qrels, ["nDCG@10"])["nDCG@10"]
    return math.fsum(values.values()) / len(values)


def table(rows: Sequence[Row]) -> str:
    """The rows as Markdown."""
    lines = [
        "| log | first stage | queries reproduced | answers | read differently | windows unseen "
        "| nDCG@10, digits | nDCG@10, last window anchored |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        done = "-" if row.reproduced is None else f"{row.reproduced} of {row.queries}"
        stage = "run" if row.given else "from the log"
        lines.append(
            f"| {row.name} | {stage} | {done} | {row.answers} | {row.differing} | {row.unseen} "
            f"| {row.digits:.4f} | {row.anchored:.4f} |"
        )
    return "\n".join(lines) + "\n"


def rows(folder: Path) -> Iterator[Row]:
    """A row for every log of a folder."""
    qrels = read_qrels(folder / "qrels.tsv")
    for path in sorted((folder / "llm_responses").glob("*.jsonl.gz")):
        yield replay(folder, path, qrels)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Replay recorded listwise rerankers.")
    parser.add_argument("folder", type=Path)
    sys.stdout.write(table(list(rows(parser.parse_args().folder))))


if __name__ == "__main__":
    main()
