"""`llmrank run`: search, augment and rerank as one run, on one line or in one TOML file."""

from __future__ import annotations

import time
import tomllib
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

import llmrank.cli.options as o
import llmrank.cli.screen as screen
import llmrank.cli.search as search
from llmrank.errors import InputError

UNNAMED = Path("runs/pipeline")


class FromFile(TyperCommand):
    """A command whose argument may be a TOML file with the argument and any of the options.

    What is given on the command line goes before the file, and the file before the environment.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401 - Typer's own
        """Put the options of the file before those that were given."""
        given, _, _ = self.make_parser(ctx).parse_args(list(args))
        path = given.get("pipeline")
        if not (isinstance(path, str) and path.endswith(".toml")):
            return super().parse_args(ctx, args)
        content = _read(path)
        pipeline = content.pop("pipeline", None)
        if not isinstance(pipeline, str):
            remedy = 'pipeline = "bm25@100 >> adaptive@20"'
            raise InputError("no pipeline", path=path, remedy=remedy)
        named = {_name(option): option for option in self.params if option.name != "pipeline"}
        written: list[str] = []
        for name, value in content.items():
            if (option := named.get(name)) is None:
                known = ", ".join(sorted(named))
                raise InputError(f"no option {name!r}", path=path, remedy=f"there are: {known}")
            words = _words(option, value, path)
            written += words if option.name not in given else []
        rest = super().parse_args(ctx, [*written, *args])
        ctx.params["pipeline"] = pipeline
        return rest


def _read(path: str) -> dict[str, object]:
    try:
        content = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot be read: {error}", path=path) from error
    return {name.replace("_", "-"): value for name, value in content.items()}


def _name(option: Any) -> str:  # noqa: ANN401 - Typer's own
    """The long name of an option, without its dashes."""
    return str(max(option.opts, key=len)).lstrip("-")


def _words(option: Any, value: object, path: str) -> list[str]:  # noqa: ANN401 - Typer's own
    """An option with its value as on the command line."""
    name = _name(option)
    if option.is_flag:
        if not isinstance(value, bool):
            raise InputError(f"{name} must be true or false, not {value!r}", path=path)
        return [f"--{name}"] if value else option.secondary_opts[:1]
    several = value if option.multiple and isinstance(value, list) else [value]
    for one in several:
        if isinstance(one, bool) or not isinstance(one, str | int | float):
            raise InputError(f"{name} must be a text or a number, not {one!r}", path=path)
    return [f"--{name}={one}" for one in several]


@o.with_model(embeds=True)
def run(
    settings: o.Settings,
    max_failures: float,
    corpus: o.Corpus,
    queries: o.Queries,
    pipeline: Annotated[
        str,
        typer.Argument(help="Such as 'bm25@100 >> query2doc >> adaptive@20', or a TOML file."),
    ],
    index: search.Index = None,
    limit: o.Limit = None,
    out: o.Out = None,
    as_json: o.Json = False,
) -> None:
    """Search, augment and rerank as one run, resumed and metered as one.

    A TOML file has the pipeline and any of the options by name (pipeline, corpus, queries, model,
    out ...); what is given on the command line goes before it, and it before the environment.
    Writes a run folder as `llmrank rerank` does, with the first stage in first.trec.
    """
    from llmrank import api
    from llmrank.store import RunFolder

    started = time.perf_counter()
    stages = api.parse_pipeline(pipeline)
    model = search.connected(settings, stages.needs)
    asked = search.read_queries(queries, limit)
    encoder, url = settings.encoder, settings.encoder_url
    retriever = search.open_retriever(
        corpus, stages.first_stage, index, encoder, url, texts=stages.shows_texts
    )
    folder = RunFolder(out or UNNAMED)
    dense = "dense" in stages.kinds
    with api.Session(settings, folder.journal(), model=model, embeds=dense) as session:
        screen.note(f"{stages} by {session.model.identity}, into {folder.path}")
        with screen.progress("queries", len(asked)) as progress:
            tally = api.run_pipeline(
                session,
                stages,
                retriever,
                asked,
                folder,
                sources={"corpus": corpus, "queries": queries},
                progress=progress,
            )
    screen.outcome(tally, session.sent, time.perf_counter() - started)
    if as_json:
        typer.echo((folder.path / "summary.json").read_text(encoding="utf-8"), nl=False)
    api.demand(tally, max_failures)
