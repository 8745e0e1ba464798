"""`llmrank methods`: what can be asked for by name."""

from __future__ import annotations

import llmrank.cli.options as o
import llmrank.cli.screen as screen


def methods(as_json: o.Json = False) -> None:
    """List the reranking and expansion methods: asks, calls and rounds for n candidates, source."""
    from llmrank import expand, rerank

    rows = [
        {
            "method": name,
            "calls": family.calls,
            "rounds": family.rounds,
            "source": family.source,
        }
        for name, family in rerank.METHODS.items()
    ]
    expansions = [
        {
            "method": str(expand.Expander(name)),
            "first stage": family.first_stage,
            "source": family.source,
        }
        for name, family in expand.METHODS.items()
    ]
    if as_json:
        screen.show({"reranking": rows, "expansion": expansions})
        return
    for title, found in (("Reranking", rows), ("Expansion", expansions)):
        screen.table(list(found[0]), [list(row.values()) for row in found], title)
