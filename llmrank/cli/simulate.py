"""`llmrank simulate`: what methods would cost and reach with a simulated judge."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

import llmrank.cli.options as o
import llmrank.cli.screen as screen
from llmrank.errors import SpecError

if TYPE_CHECKING:
    from llmrank.api.simulation import Case, Prediction

_JUDGE = "Judge"


def _data(*names: str, help: str, **given: Any) -> Any:  # noqa: ANN401 - typer's own types
    return typer.Option(*names, help=help, rich_help_panel=o.DATA, **given)


def _judge(*names: str, help: str, **given: Any) -> Any:  # noqa: ANN401
    return typer.Option(*names, help=help, rich_help_panel=_JUDGE, **given)


Methods = Annotated[
    list[str],
    typer.Option("--method", help="Such as sliding(window=20)@100; cascades too. Repeatable."),
]
Run = Annotated[
    str | None, _data("--run", help="First-stage run with --qrels; without, data are drawn.")
]
Qrels = Annotated[str | None, _data("--qrels", help="Judgements; unjudged counts as grade 0.")]
Depth = Annotated[int, _data("--n", min=1, help="Candidates of a query.")]
Count = Annotated[
    int | None,
    _data("--queries-count", min=1, help="Queries: 50 are drawn, or all of the run are taken."),
]
FirstStage = Annotated[
    float, _data("--first-stage", min=0, max=1, help="nDCG@10 of the order of drawn data.")
]
Deviation = Annotated[
    float,
    _judge(
        "--noise",
        min=0,
        help="Deviation of the judge's noise in grade steps. On TREC DL 2019, 1.1 brings sliding "
        "windows to nDCG@10 of about .735, 1.35 to .68.",
    ),
]
Fixed = Annotated[
    float,
    _judge("--fixed", min=0, max=1, help="Share of its variance that is the same in every call."),
]
Fresh = Annotated[
    str, _judge("--fresh", help="The rest: gumbel (Plackett-Luce) or gaussian (Thurstone).")
]
Bias = Annotated[
    float, _judge("--bias", help="Grade steps that the last place shown loses against the first.")
]
Seeds = Annotated[int, _judge("--seeds", min=1, help="Judges drawn; figures are means over them.")]
At = Annotated[int, typer.Option("--at", min=1, help="Depth of nDCG.")]
PassageTokens = Annotated[
    int, _data("--passage-tokens", min=1, help="Tokens taken for each document shown.")
]


def simulate(
    method: Methods,
    run: Run = None,
    qrels: Qrels = None,
    n: Depth = 100,
    queries_count: Count = None,
    first_stage: FirstStage = 0.5,
    at: At = 10,
    passage_tokens: PassageTokens = 120,
    noise: Deviation = 1.1,
    fixed: Fixed = 0.5,
    fresh: Fresh = "gumbel",
    bias: Bias = 0.0,
    seeds: Seeds = 20,
    as_json: o.Json = False,
) -> None:
    """Predict what methods reach and cost with a judge that errs as stated; nothing is sent.

    Calls, rounds, documents shown and tokens are means per query; tokens are --passage-tokens for
    each document shown and 100 for each call. The interval is over queries, the difference is that
    to the first stage on the same queries. Drawn data have grades 0 to 3 in the shares .70, .12,
    .12 and .06. Costs that depend on no answer are exact; nDCG is only as good as the judge.
    """
    from llmrank import rerank
    from llmrank.api import simulation

    rankers = [rerank.parse(text) for text in method]
    judge = simulation.Noise(noise, fixed, fresh, bias)
    cases = _cases(run, qrels, n, queries_count, first_stage)
    with screen.progress("simulating", len(rankers) * len(cases) * seeds) as progress:
        found = simulation.simulate(
            rankers,
            cases,
            judge,
            seeds=seeds,
            depth=at,
            passage_tokens=passage_tokens,
            progress=progress,
        )
    if as_json:
        data = {"queries": len(cases), "seeds": seeds, "judge": asdict(judge)}
        screen.show({**data, "methods": [_record(prediction, at) for prediction in found]})
    else:
        _print(found, at)


def _cases(
    run: str | None, qrels: str | None, n: int, count: int | None, first_stage: float
) -> list[Case]:
    from llmrank.api import simulation

    if run and qrels:
        return simulation.judged_cases(run, qrels, n=n, limit=count)
    if run or qrels:
        raise SpecError("--run and --qrels belong together")
    return simulation.synthetic_cases(count or 50, n, first_stage=first_stage)


def _record(found: Prediction, at: int) -> dict[str, Any]:
    gain = found.gain
    return {
        "method": found.method,
        f"nDCG@{at}": found.ndcg.mean,
        "interval": found.ndcg.interval,
        "standard_error_over_seeds": found.error,
        "difference": None if gain is None else gain.difference,
        "difference_interval": None if gain is None else gain.interval,
        "calls": found.calls,
        "rounds": found.rounds,
        "documents_shown": found.shown,
        "tokens": found.tokens,
    }


def _print(predictions: list[Prediction], at: int) -> None:
    columns = ["method", f"nDCG@{at}", "95 % interval", "difference", "95 % interval"]
    columns += ["calls", "rounds", "shown", "tokens"]
    rows = []
    for found in predictions:
        record = _record(found, at)
        rows.append(
            [
                found.method,
                f"{found.ndcg.mean:.3f}",
                _interval(record["interval"], ".3f"),
                "" if found.gain is None else f"{found.gain.difference:+.3f}",
                _interval(record["difference_interval"], "+.3f"),
                *(
                    f"{value:,.1f}".removesuffix(".0")
                    for value in (found.calls, found.rounds, found.shown)
                ),
                f"{found.tokens:,.0f}",
            ]
        )
    screen.table(columns, rows)


def _interval(found: tuple[float, float] | None, form: str) -> str:
    return "" if found is None else f"[{found[0]:{form}}, {found[1]:{form}}]"
