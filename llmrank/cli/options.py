"""Options that several commands share, each defined once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmrank.errors import SpecError

if TYPE_CHECKING:
    from llmrank.api import Settings

DATA, MODEL, CAPS, OUTPUT = "Data", "Model", "Caps", "Output"


def _option(*names: str, panel: str, help: str, envvar: str | None = None) -> object:
    return typer.Option(*names, help=help, rich_help_panel=panel, envvar=envvar)


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
Limit = Annotated[int | None, _option("--limit", panel=DATA, help="Only the first N queries.")]
Model = Annotated[
    str | None,
    _option(
        "--model",
        "-m",
        panel=MODEL,
        envvar="LLMRANK_MODEL",
        help="local, local:FOLDER, openai:NAME, vllm:NAME or oracle:QRELS. Default: the server at "
        "--base-url, else the small local model.",
    ),
]
BaseUrl = Annotated[
    str | None,
    _option(
        "--base-url",
        panel=MODEL,
        envvar="LLMRANK_BASE_URL",
        help="An OpenAI-compatible server, such as http://127.0.0.1:8000/v1.",
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
    int | None, _option("--passage-words", panel=MODEL, help="Show at most N words of a passage.")
]
InFlight = Annotated[
    int, _option("--in-flight", panel=MODEL, help="Requests under way at once (servers).")
]
Encoder = Annotated[
    str | None,
    _option("--encoder", panel=MODEL, help="Embedding model: local, local:NAME, openai:NAME."),
]
EncoderUrl = Annotated[
    str | None, _option("--encoder-url", panel=MODEL, help="Server of the embedding model.")
]
MaxCalls = Annotated[int | None, _option("--max-calls", panel=CAPS, help="Stop after N requests.")]
MaxTokens = Annotated[int | None, _option("--max-tokens", panel=CAPS, help="Stop at N tokens.")]
MaxCost = Annotated[
    float | None, _option("--max-cost", panel=CAPS, help="Stop at this amount; needs prices.")
]
MaxSeconds = Annotated[float | None, _option("--max-seconds", panel=CAPS, help="Deadline.")]
Prices = Annotated[
    str,
    _option("--prices", panel=CAPS, help="IN,OUT: money per million prompt and completion tokens."),
]
MaxFailures = Annotated[
    float,
    _option("--max-failures", panel=CAPS, help="Exit 5 when a larger share of the answers failed."),
]
Out = Annotated[
    Path | None,
    _option("--out", "-o", panel=OUTPUT, help="Run folder; the same one continues a run."),
]
Json = Annotated[bool, _option("--json", panel=OUTPUT, help="Print the result as JSON.")]


def settings(
    *,
    model: str | None,
    base_url: str | None,
    prompt: list[str] | None = None,
    passage_words: int | None = None,
    in_flight: int = 32,
    encoder: str | None = None,
    encoder_url: str | None = None,
    max_calls: int | None = None,
    max_tokens: int | None = None,
    max_cost: float | None = None,
    max_seconds: float | None = None,
    prices: str = "",
) -> Settings:
    """The settings of a session from what was given on the command line."""
    from llmrank.api import Caps, Settings

    prompt_price, completion_price = _prices(prices)
    if max_cost is not None and not prices:
        raise SpecError("--max-cost needs --prices IN,OUT")
    return Settings(
        model=model,
        base_url=base_url,
        encoder=encoder,
        encoder_url=encoder_url,
        prompts=dict(_override(given) for given in prompt or []),
        passage_words=passage_words,
        in_flight=in_flight,
        caps=Caps(max_calls, max_tokens, max_cost, max_seconds, prompt_price, completion_price),
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
