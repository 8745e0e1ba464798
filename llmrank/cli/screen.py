"""What a person sees: progress and notes on standard error, tables and JSON on standard output."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from llmrank.api.runs import Progress
    from llmrank.backends.wrappers import Meter
    from llmrank.types import Tally


def note(text: str) -> None:
    """One line on standard error."""
    typer.echo(f"llmrank: {text}", err=True)


def show(value: Mapping[str, Any] | Sequence[Any]) -> None:
    """A value as JSON on standard output."""
    typer.echo(json.dumps(value, ensure_ascii=False, indent=2))


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> None:
    """A table on standard output; all columns but the first are aligned to the right."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(title=title or None, title_justify="left", box=None, pad_edge=False)
    for i, column in enumerate(columns):
        numeric = i > 0 and all(not row[i] or row[i][0] in "+-−.0123456789<[" for row in rows)
        drawn.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*map(Text, row))
    console = Console(highlight=False)
    if not console.is_terminal:
        # A file or a pipe gets whole lines, whatever the width of the terminal.
        console = Console(highlight=False, width=1 << 20)
    console.print(drawn)


@contextmanager
def steps() -> Iterator[Callable[[str, int, Tally], None]]:
    """A line on standard error that says how far a step is; silent where that is no terminal."""
    from rich.console import Console
    from rich.markup import escape

    console = Console(stderr=True)
    with console.status("") as line:

        def update(step: str, count: int, tally: Tally) -> None:
            line.update(escape(f"{count:,} through {step} ({tally.asks:,} asks)"))

        yield update


@contextmanager
def progress(label: str, total: int | None = None) -> Iterator[Progress]:
    """A progress bar on standard error; silent where that is not a terminal."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[asks]} asks"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(label, total=total, asks=0)

        def update(done: int, tally: Tally) -> None:
            bar.update(task, completed=done, asks=tally.asks)

        yield update


def outcome(tally: Tally, meter: Meter, seconds: float) -> None:
    """What a run cost, on standard error."""
    statuses = ", ".join(f"{count} {status}" for status, count in tally.outcomes.items())
    note(
        f"{tally.asks} asks ({statuses or 'none'}), {meter.requests} requests sent, "
        f"{tally.reused} from the journal, "
        f"{tally.usage.prompt_tokens:,} prompt and {tally.usage.completion_tokens:,} completion "
        f"tokens, {tally.cut} passages cut, {seconds:.1f} s"
    )
    if meter.faults:
        counts = (f"{count} {kind}" for kind, count in meter.faults.most_common())
        note(f"  {meter.errors} requests failed: {', '.join(counts)}")
    for status, said in tally.problems.items():
        note(f"  first {status}: {said}")
    for stage, cost in tally.stages.items():
        tokens = (cost.usage + cost.reused_usage).total
        note(f"  {stage}: {cost.asks} asks in {cost.rounds} rounds, {tokens:,} tokens")
