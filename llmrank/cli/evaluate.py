"""`llmrank eval`: measures of runs side by side, with intervals and tests."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import llmrank.cli.options as o
import llmrank.cli.screen as screen
from llmrank.errors import InputError

if TYPE_CHECKING:
    from llmrank.evaluate import Evaluation


def evaluate(
    runs: Annotated[list[str], typer.Argument(help="Runs in TREC format, or run folders.")],
    qrels: Annotated[str, typer.Option(help="Judgements: TREC, BEIR TSV, or ir_datasets:NAME.")],
    compare: Annotated[
        str | None, typer.Option(help="The run to compare with; default: the first.")
    ] = None,
    relevant: Annotated[
        int,
        typer.Option(min=1, help="Lowest grade that counts for MAP, MRR, Recall (2 for TREC DL)."),
    ] = 1,
    judged_in_all: Annotated[
        bool, typer.Option("--common", help="Only the queries that all runs have.")
    ] = False,
    as_json: o.Json = False,
) -> None:
    """Print nDCG@10, MAP, MRR@10 and Recall@100 by trec_eval's rules, with a paired comparison.

    Judged queries that a run lacks count 0. The interval of a difference is a paired bootstrap of
    95 %, p comes from a randomisation test over queries.
    """
    from llmrank import evaluate as measures
    from llmrank import trec

    names = list(dict.fromkeys([*([compare] if compare else []), *runs]))
    loaded = {name: dict(trec.read_run(_run_file(name))) for name in names}
    judged = trec.read_qrels(qrels)
    if judged_in_all:
        common = set(judged).intersection(*loaded.values())
        judged = {query: judged[query] for query in judged if query in common}
        if not judged:
            raise InputError("there is no judged query that all runs have")
    found = [
        measures.evaluate(name, run, judged, relevant=relevant) for name, run in loaded.items()
    ]
    rows = [_row(evaluation, found[0]) for evaluation in found]
    if as_json:
        screen.show(rows)
        return
    _table(rows)
    for evaluation in found:
        if evaluation.missing:
            count = len(evaluation.missing)
            screen.note(f"{evaluation.name} lacks {count} judged queries; they count 0")


def _run_file(name: str) -> str | Path:
    return Path(name) / "run.trec" if Path(name).is_dir() else name


def _row(evaluation: Evaluation, base: Evaluation) -> dict[str, Any]:
    from llmrank.evaluate import MEASURES, compare, label

    first = MEASURES[0]
    row: dict[str, Any] = {
        "run": evaluation.name,
        "queries": len(evaluation.values[first]),
        **{label(name): mean for name, mean in evaluation.means.items()},
        "unjudged@10": evaluation.unjudged_at_10,
    }
    if evaluation is not base:
        found = compare(evaluation.values[first], base.values[first])
        row["against"] = {
            "run": base.name,
            "measure": label(first),
            "difference": found.difference,
            "interval": list(found.interval) if found.interval else None,
            "p": found.p,
            "wins": found.wins,
            "losses": found.losses,
            "ties": found.ties,
        }
    return row


def _table(rows: list[dict[str, Any]]) -> None:
    measures = [key for key in rows[0] if key not in ("run", "queries", "against")]
    lines = [
        [
            row["run"],
            str(row["queries"]),
            *("" if row[name] is None else f"{row[name]:.4f}" for name in measures),
            *_difference(row.get("against")),
        ]
        for row in rows
    ]
    extra = ["difference", "95 % interval", "p", "won/lost/tied"] if len(rows) > 1 else []
    columns = ["run", "queries", *measures, *extra]
    screen.table(columns, [line[: len(columns)] for line in lines])


def _difference(against: dict[str, Any] | None) -> list[str]:
    if against is None:
        return ["", "", "", ""]
    interval = against["interval"]
    return [
        f"{against['difference']:+.4f}",
        "" if interval is None else f"[{interval[0]:+.4f}, {interval[1]:+.4f}]",
        f"{against['p']:.4f}",
        f"{against['wins']}/{against['losses']}/{against['ties']}",
    ]
