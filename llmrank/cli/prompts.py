"""`llmrank prompts`: list, show and render the templates."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

import llmrank.cli.options as o
import llmrank.cli.screen as screen

app = typer.Typer(help="List, show and render prompt templates.", no_args_is_help=True)


@app.command("list")
def list_prompts(as_json: o.Json = False) -> None:
    """List the templates that come with llmrank."""
    from llmrank import prompts

    found = [prompts.load(name) for name in prompts.names()]
    rows = [
        {"name": t.name, "ask": t.ask, "description": t.description, "source": t.source}
        for t in found
    ]
    if as_json:
        screen.show(rows)
    else:
        screen.table(list(rows[0]), [list(row.values()) for row in rows])


@app.command("show")
def show(name: str, as_json: o.Json = False) -> None:
    """Print a template's file: copy it, change it, and give it with --prompt KIND=FILE."""
    from llmrank import prompts

    template = prompts.load(name)
    if as_json:
        screen.show(template.model_dump())
    else:
        typer.echo(prompts.path_of(name).read_text(encoding="utf-8"), nl=False)


@app.command("render")
def render(
    name: str,
    query: Annotated[str, typer.Option(help="The query.")] = "what is dense retrieval?",
    passage: Annotated[
        list[str] | None, typer.Option(help="A passage; give it several times for several.")
    ] = None,
    as_json: o.Json = False,
) -> None:
    """Print exactly what a model is sent for a query and passages."""
    from llmrank import prompts
    from llmrank.backends.tokens import Estimate

    shown = passage or ["Dense retrieval compares vectors of queries and documents."]
    request = prompts.example(name, query, shown, Estimate())
    if as_json:
        screen.show(
            {
                "messages": [turn._asdict() for turn in request.messages],
                "prompt": request.prompt,
                "target": request.target,
                "labels": request.labels,
                "params": asdict(request.params),
            }
        )
        return
    for turn in request.messages:
        typer.echo(f"--- {turn.role}\n{turn.content}")
    if request.prompt:
        typer.echo(f"--- prompt\n{request.prompt}")
    if request.target:
        typer.echo(f"--- scored continuation\n{request.target}")
    if request.labels:
        screen.show({"labels": {k: list(v) for k, v in request.labels.items()}})
