"""The command line. Each command lives in a file of its own; they share `options` and `screen`.

Exit codes: 0 done; 1 unexpected; 2 wrong usage; 3 bad input; 4 the model cannot be used;
5 too many failed answers; 6 stopped at a cap; 130 interrupted.
"""

from __future__ import annotations

import sys

import typer

from llmrank.cli import (
    estimate,
    evaluate,
    expand,
    export,
    from_file,
    generate,
    methods,
    probe,
    prompts,
    rerank,
    run,
    search,
    show,
    simulate,
)
from llmrank.errors import LlmrankError

INTERRUPTED = 130  # what Typer makes of Ctrl-C

app = typer.Typer(
    name="llmrank",
    help="LLM reranking, query augmentation and synthetic training data. Progress and warnings go "
    "to standard error, results to standard output or --out. Exit codes: 0 done, 2 wrong usage, "
    "3 bad input, 4 the model cannot be used, 5 too many failed answers, 6 stopped at a cap.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command("search")(search.search)
app.command("rerank")(rerank.rerank)
app.command("run", cls=from_file.Pipeline)(run.run)
app.command("expand")(expand.expand)
app.command("generate", cls=from_file.Recipe)(generate.generate)
app.command("export")(export.export)
app.command("show")(show.show)
app.command("eval")(evaluate.evaluate)
app.command("estimate")(estimate.estimate)
app.command("simulate")(simulate.simulate)
app.command("probe")(probe.probe)
app.command("methods")(methods.methods)
app.add_typer(prompts.app, name="prompts")


@app.callback(invoke_without_command=True)
def version(
    told: bool = typer.Option(False, "--version", help="Print the version and leave."),
) -> None:
    if told:
        from llmrank import __version__

        typer.echo(f"llmrank {__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line; errors a user can act on become one line and an exit code."""
    try:
        app()
    except LlmrankError as error:
        typer.echo(f"llmrank: {error}", err=True)
        sys.exit(error.exit_code)
    except SystemExit as leaving:
        if leaving.code == INTERRUPTED:
            typer.echo(
                "llmrank: interrupted; what a run was answered so far is in its journal", err=True
            )
        raise
