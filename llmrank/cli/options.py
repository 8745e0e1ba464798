"""Options that several commands share, each defined once."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmrank.errors import SpecError

if TYPE_CHECKING:
    from llmrank.api import Settings as Settings
else:
    # The library is imported when a command runs, so that --help is there at once.
    Settings = object

_KEYWORD = inspect.Parameter.KEYWORD_ONLY
DATA, MODEL, CAPS, OUTPUT = "Data", "Model", "Caps", "Output"


def _option(
    *names: str,
    panel: str,
    help: str,
    envvar: str | None = None,
    least: float | None = None,
    most: float | None = None,
) -> object:
    return typer.Option(
        *names, help=help, rich_help_panel=panel, envvar=envvar, min=least, max=most
    )


Run = Annotated[
    str, _option("--run", panel=DATA, help="First-stage run, TREC format; .gz and - work.")
]
Corpus = Annotated[
    str,
    _option("--corpus", panel=DATA, help="BEIR folder, JSONL, TSV or ir_datasets:NAME; .gz works."),
]
Queries = Annotated[
    str, _option("--queries", panel=DATA, help="BEIR folder, JSONL, TSV or ir_datasets:NAME.")
]
Limit = Annotated[
    int | None, _option("--limit", panel=DATA, least=1, help="Only the first N queries.")
]
Model = Annotated[
    str | None,
    _option(
        "--model",
        "-m",
        panel=MODEL,
        envvar="LLMRANK_MODEL",
        help="local, local:FOLDER, openai:NAME, vllm:NAME, oracle:QRELS and more (docs/models.md). "
        "Default: the server at --base-url, else the small local model.",
    ),
]
BaseUrl = Annotated[
    str | None,
    _option(
        "--base-url",
        panel=MODEL,
        envvar="LLMRANK_BASE_URL",
        help="An OpenAI-compatible server, such as http://127.0.0.1:8000/v1; several with commas.",
    ),
]
Prompt = Annotated[
    list[str] | None,
    _option(
        "--prompt",
        panel=MODEL,
        help="KIND=FILE: a template of your own for order, grade, likelihood or a write task.",
    ),
]
PassageWords = Annotated[
    int | None,
    _option("--passage-words", panel=MODEL, least=1, help="Show at most N words of a passage."),
]
PassageTokens = Annotated[
    int | None,
    _option("--passage-tokens", panel=MODEL, least=1, help="Show at most N tokens of a passage."),
]
Truncation = Annotated[
    str | None,
    _option(
        "--truncation",
        panel=MODEL,
        help="Which part of a longer passage is shown: head, tail or middle (both ends).",
    ),
]
Thinking = Annotated[
    int,
    _option(
        "--thinking",
        panel=MODEL,
        least=0,
        help="Tokens that a reasoning model may think for before it answers in text.",
    ),
]
InFlight = Annotated[
    int, _option("--in-flight", panel=MODEL, least=1, help="Requests under way at once (servers).")
]
Rpm = Annotated[
    int | None, _option("--rpm", panel=MODEL, least=1, help="Requests per minute (servers).")
]
Tpm = Annotated[
    int | None, _option("--tpm", panel=MODEL, least=1, help="Tokens per minute (servers).")
]
Hedge = Annotated[
    bool,
    _option(
        "--hedge",
        panel=MODEL,
        help="Ask again, 5 % of the requests at most, where an answer takes 3 times the median.",
    ),
]
Encoder = Annotated[
    str | None,
    _option(
        "--encoder",
        panel=MODEL,
        help="Embedding model: local, local:NAME, openai:NAME, promptreps:NAME.",
    ),
]
EncoderUrl = Annotated[
    str | None, _option("--encoder-url", panel=MODEL, help="Server of the embedding model.")
]
MaxCalls = Annotated[
    int | None, _option("--max-calls", panel=CAPS, least=0, help="Stop after N requests.")
]
MaxTokens = Annotated[
    int | None, _option("--max-tokens", panel=CAPS, least=0, help="Stop at N tokens.")
]
MaxCost = Annotated[
    float | None,
    _option("--max-cost", panel=CAPS, least=0, help="Stop at this amount; needs prices."),
]
MaxSeconds = Annotated[
    float | None, _option("--max-seconds", panel=CAPS, least=0, help="Deadline.")
]
Probe = Annotated[
    bool,
    _option(
        "--probe/--no-probe",
        panel=MODEL,
        envvar="LLMRANK_PROBE",
        help="First try out what a new server can do: about 30 tiny requests, kept in --out.",
    ),
]
Prices = Annotated[
    str,
    _option("--prices", panel=CAPS, help="IN,OUT: money per million prompt and completion tokens."),
]
MaxFailures = Annotated[
    float,
    _option(
        "--max-failures",
        panel=CAPS,
        least=0,
        most=1,
        help="Exit 5 when a larger share of the answers failed.",
    ),
]
Out = Annotated[
    Path | None,
    _option("--out", "-o", panel=OUTPUT, help="Run folder; the same one continues a run."),
]
Method = Annotated[
    str | None,
    _option(
        "--method",
        panel=MODEL,
        help="Such as sliding(window=20)@100; see llmrank methods. Default: by the model.",
    ),
]
Json = Annotated[bool, _option("--json", panel=OUTPUT, help="Print the result as JSON.")]


_SHARED: Mapping[str, tuple[object, object]] = {
    "model": (Model, None),
    "base_url": (BaseUrl, None),
    "prompt": (Prompt, None),
    "passage_words": (PassageWords, None),
    "passage_tokens": (PassageTokens, None),
    "truncation": (Truncation, None),
    "thinking": (Thinking, 0),
    "in_flight": (InFlight, 32),
    "prices": (Prices, ""),
    "max_calls": (MaxCalls, None),
    "max_tokens": (MaxTokens, None),
    "max_cost": (MaxCost, None),
    "max_seconds": (MaxSeconds, None),
    "max_failures": (MaxFailures, 0.1),
    "rpm": (Rpm, None),
    "tpm": (Tpm, None),
    "hedge": (Hedge, False),
    "probe": (Probe, False),
}
_EMBEDDING: Mapping[str, tuple[object, object]] = {
    "encoder": (Encoder, None),
    "encoder_url": (EncoderUrl, None),
}


def with_model(*, embeds: bool = False) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of a model and the caps, as one `settings` argument.

    One that takes `max_failures` gets it beside them; one that `embeds` also has the options of an
    embedding model.
    """

    def made(chosen: dict[str, Any]) -> dict[str, object]:
        limit = chosen.pop("max_failures")
        return {"settings": settings(**chosen), "max_failures": limit}

    shared = {**_SHARED, **(_EMBEDDING if embeds else {})}
    return partial(with_options, shared, ("settings", "max_failures"), made)


def with_options(
    shared: Mapping[str, tuple[object, object]],
    replaced: Collection[str],
    made: Callable[[dict[str, Any]], dict[str, object]],
    command: Callable[..., None],
) -> Callable[..., None]:
    """The command with shared options in the place of the arguments `replaced`.

    `made` gives these by name from what was chosen; those that the command has not are left out.
    """
    own = inspect.signature(command, eval_str=True).parameters
    kept = [parameter for name, parameter in own.items() if name not in replaced]
    added = [
        inspect.Parameter(name, _KEYWORD, default=default, annotation=annotation)
        for name, (annotation, default) in shared.items()
    ]
    parameters = [parameter.replace(kind=_KEYWORD) for parameter in (*kept, *added)]

    @functools.wraps(command)
    def run(**given: Any) -> None:  # noqa: ANN401 - typer has checked every option
        arguments = made({name: given.pop(name) for name in shared})
        taken = {name: value for name, value in arguments.items() if name in own}
        command(**taken, **given)

    run.__dict__["__signature__"] = inspect.Signature(parameters)
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    return run


def settings(
    *,
    prompt: list[str] | None,
    prices: str,
    max_calls: int | None,
    max_tokens: int | None,
    max_cost: float | None,
    max_seconds: float | None,
    **given: Any,  # noqa: ANN401 - fields of Settings
) -> Settings:
    """The settings of a session from what was given on the command line."""
    from llmrank.api import Caps, Settings

    prompt_price, completion_price = _prices(prices)
    if max_cost is not None and not prices:
        raise SpecError("--max-cost needs --prices IN,OUT")
    return Settings(
        prompts=dict(_override(slot) for slot in prompt or []),
        caps=Caps(max_calls, max_tokens, max_cost, max_seconds, prompt_price, completion_price),
        **given,
    )


def _override(given: str) -> tuple[str, str]:
    slot, equals, path = given.partition("=")
    if not equals:
        raise SpecError(f"--prompt {given!r}: write KIND=FILE, such as grade=mine.toml")
    return slot.strip(), path.strip()


def _prices(given: str) -> tuple[float, float]:
    if not given:
        return 0.0, 0.0
    try:
        prompt, completion = (float(part) for part in given.split(","))
    except ValueError as error:
        raise SpecError(f"--prices {given!r}: write IN,OUT, such as 0.4,1.6") from error
    return prompt, completion
