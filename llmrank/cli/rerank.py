"""`llmrank rerank`: a first-stage run in, a run folder out."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import typer

import llmrank.cli.options as o
import llmrank.cli.screen as screen

UNNAMED = Path("runs/unnamed")


@o.with_model()
def rerank(
    run: o.Run,
    corpus: o.Corpus,
    queries: o.Queries,
    settings: o.Settings,
    max_failures: float,
    method: o.Method = None,
    limit: o.Limit = None,
    out: o.Out = None,
    as_json: o.Json = False,
) -> None:
    """Rerank a first-stage run with a language model.

    Writes a run folder: manifest.json, run.trec, scores.jsonl, summary.json and the journal of all
    answers. Without --out the run goes to standard output and the folder is runs/unnamed. The same
    command again goes on where it stopped; with other parameters it starts afresh and still reuses
    every identical answer, also those of the runs beside it.
    """
    from llmrank import api, rerank, trec
    from llmrank.backends import connect
    from llmrank.store import RunFolder

    started = time.perf_counter()
    asked = connect(settings.model, base_url=settings.base_url)
    chosen = rerank.parse(method) if method else api.default_method(asked)
    api.check(settings, asked, chosen.needs)
    with trec.rereadable(run) as first:
        inputs = api.Inputs(api.RunInput(first, corpus, queries, limit), chosen.depth)
        inputs.attempt(chosen)
        # Not earlier, so that a mistake in what was given leaves no folder behind.
        folder = RunFolder(out or UNNAMED)
        with api.Session(settings, folder.journal(), model=asked) as session:
            # Only the session knows what a probe has found out, which is part of the name.
            screen.note(f"{chosen} by {session.model.identity}, into {folder.path}")
            with screen.progress("queries", len(inputs.queries)) as progress:
                tally = api.rerank_run(session, chosen, inputs, folder, progress=progress)
    screen.outcome(tally, session.sent, time.perf_counter() - started)
    if as_json:
        typer.echo((folder.path / "summary.json").read_text(encoding="utf-8"), nl=False)
    elif out is None:
        with folder.run.open(encoding="utf-8") as lines:
            sys.stdout.writelines(lines)
    api.demand(tally, max_failures)
