"""`llmrank estimate`: what a rerank run would cost; nothing is sent."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import llmrank.cli.options as o
import llmrank.cli.screen as screen
from llmrank.cli.rerank import UNNAMED

if TYPE_CHECKING:
    from llmrank.api import Estimate


@o.with_model()
def estimate(
    run: o.Run,
    corpus: o.Corpus,
    queries: o.Queries,
    settings: o.Settings,
    method: o.Method = None,
    limit: o.Limit = None,
    out: o.Out = None,
    as_json: o.Json = False,
) -> None:
    """Count the calls, tokens, money and rounds of a rerank run before anything is sent.

    Takes the flags of the rerank command. Answers that the journal in --out or those beside it
    have are known and cost nothing. The estimate is of the whole run: caps do not change it, and
    nothing is probed. Methods whose calls depend on the answers have a range of calls, from a model
    that confirms the first-stage order to the most that there can be; rounds, tokens and cost are
    those of the former.
    """
    from tempfile import TemporaryDirectory

    from llmrank import api, rerank, trec
    from llmrank.backends import connect
    from llmrank.store import JOURNAL, Journal, beside

    model = connect(settings.model, base_url=settings.base_url)
    chosen = rerank.parse(method) if method else api.default_method(model)
    folder = out or UNNAMED
    with trec.rereadable(run) as first, TemporaryDirectory(prefix="llmrank-") as scratch:
        inputs = api.Inputs(api.RunInput(first, corpus, queries, limit), chosen.depth)
        # A journal of its own, so that looking leaves the run's folder as it is.
        also = [folder / JOURNAL, *beside(folder)]
        with closing(Journal(Path(scratch) / JOURNAL, also)) as journal:
            found = api.estimate(settings, chosen, inputs, journal, model=model)
    if as_json:
        screen.show({"method": str(chosen), **asdict(found)})
        return
    screen.table(["", ""], [["method", str(chosen)], *_rows(found, settings)])


def _rows(found: Estimate, settings: o.Settings) -> list[list[str]]:
    # The fewest calls are those of a model that confirms the first-stage order.
    more = f" to {found.calls_at_most:,}" if found.calls_at_most > found.calls else ""
    priced = settings.caps.prompt_price or settings.caps.completion_price
    rows = [
        ["model", found.model],
        ["queries", f"{found.queries:,}"],
        ["calls", f"{found.calls:,}{more}"],
        ["answers known", f"{found.known:,}"],
        ["rounds, longest query", f"{found.rounds:,}"],
        ["prompt tokens", f"{found.usage.prompt_tokens:,}"],
        ["  counted by", found.counting],
        ["completion tokens, at most", f"{found.usage.completion_tokens:,}"],
        [
            "cost, with replies at their limit",
            f"{found.cost:.4f}" if priced else "give --prices IN,OUT",
        ],
        ["passages cut", f"{found.passages_cut:,}"],
        ["prompts that cannot fit", f"{found.too_long:,}"],
    ]
    if settings.rpm or settings.tpm:
        least = f"{found.seconds_at_least / 60:,.0f}"
        rows.append(["minutes, at least, by --rpm and --tpm", least])
    return rows
