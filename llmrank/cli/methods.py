"""`llmrank methods`: what can be asked for by name."""

from __future__ import annotations

import inspect

from llmrank.cli import options as o
from llmrank.cli import screen


def methods(as_json: o.Json = False) -> None:
    """List the reranking and expansion methods: parameters, asks, cost for n candidates, source."""
    from llmrank import expand, rerank

    rows = [
        {
            "method": str(rerank.Method(name)),
            "ask": family.asks.__name__,
            "calls": family.calls,
            "rounds": family.rounds,
            "about": inspect.getdoc(family.plan) or "",
        }
        for name, family in rerank.METHODS.items()
    ]
    expansions = [
        {
            "method": str(expand.Expander(name)),
            "first stage": family.first_stage,
            "about": inspect.getdoc(family.plan) or "",
        }
        for name, family in expand.METHODS.items()
    ]
    if as_json:
        screen.show({"reranking": rows, "expansion": expansions})
        return
    for title, found in (("Reranking", rows), ("Expansion", expansions)):
        columns = [name for name in found[0] if name != "about"]
        lines = [[*(row[c] for c in columns), _source(row["about"])] for row in found]
        screen.table([*columns, "source"], lines, title)


def _source(about: str) -> str:
    """The last sentence or two of a docstring, which name the paper."""
    return " ".join(about.rsplit("\n\n", 1)[-1].split()).rsplit(". ", 1)[-1]
