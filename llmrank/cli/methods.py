"""`llmrank methods`: what can be asked for by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

import llmrank.cli.options as o
import llmrank.cli.screen as screen

if TYPE_CHECKING:
    from llmrank.rerank import Method
    from llmrank.synth import Step

Count = Annotated[int, typer.Option("--n", min=2, help="Candidates of a query in the table.")]
SHOWN = ("method", "asks", "calls", "rounds", "source")
INNER = "sliding"
EXPANSION = "query2doc"
INSIDE = "yesno"


def methods(n: Count = 100, as_json: o.Json = False) -> None:
    """List reranking methods, expansions and the steps of recipes: what they ask, cost, source.

    Calls and rounds are those of a synthetic query with n candidates, whose first-stage order a
    judge confirms; a worse order takes some methods more. --json has the formulas too, and `exact`:
    how many of the top places are right if every answer is.
    """
    from llmrank import expand, rerank, synth

    rows = [
        _told(rerank.Method(name, inner=rerank.Method(INNER) if family.inner else None), n)
        for name, family in rerank.METHODS.items()
    ]
    expansions = [
        {
            "method": str(expand.parse(f"{name}({EXPANSION})" if family.inner else name)),
            "first stage": " or ".join(family.kinds),
            "source": family.source,
        }
        for name, family in expand.METHODS.items()
    ]
    steps = [_step(step) for step in synth.STEPS.values()]
    if as_json:
        screen.show({"reranking": rows, "expansion": expansions, "recipes": steps})
        return
    screen.table(SHOWN, [[str(row[key]) for key in SHOWN] for row in rows], f"Reranking, n = {n}")
    screen.table(list(expansions[0]), [list(row.values()) for row in expansions], "Expansion")
    told = "Steps of recipes (llmrank generate)"
    screen.table(list(steps[0]), [list(row.values()) for row in steps], told)


def _step(step: type[Step]) -> dict[str, str]:
    from llmrank import rerank
    from llmrank.synth.base import DocumentFilter, Stage, Writer

    kinds = {DocumentFilter: "document filter", Writer: "writer", Stage: "stage"}
    made = step(rerank.parse(INSIDE)) if step.ranks == "must" else step()
    return {
        "step": str(made).replace(str(made.method), INSIDE),
        "kind": next((name for kind, name in kinds.items() if issubclass(step, kind)), "choice"),
        "source": step.paper,
    }


def _told(method: Method, n: int) -> dict[str, object]:
    from llmrank import api

    deep = type(method)(method.name, method.parameters, n, method.inner)
    cases = api.synthetic_cases(1, n, first_stage=1.0)
    _, found = api.simulate([deep], cases, api.Noise(), seeds=1)
    family = method.family
    return {
        "method": str(method),
        "asks": ", ".join(
            f"{need.ask.__name__} by {need.by}"
            if need.ask.__name__ == "Pick"
            else need.ask.__name__
            for need in method.needs
        ),
        "calls": round(found.calls, 1),
        "rounds": round(found.rounds, 1),
        "formulas": {"calls": family.calls, "rounds": family.rounds, "exact": family.exact},
        "source": family.source,
    }
