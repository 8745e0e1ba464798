"""`llmrank export`: the examples of a run as what trainers read."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

import llmrank.cli.options as o
import llmrank.cli.screen as screen


def export(
    run: Annotated[Path, typer.Argument(help="Run folder of `llmrank generate`.")],
    format: Annotated[
        str,
        typer.Option(
            "--format",
            "-f",
            help="beir, msmarco, st-pairs, st-triplets, st-ntuples, st-margin, st-kldiv, st-ce, "
            "st-listwise, tevatron, flagembedding, pylate, colbert, trl-sft, trl-dpo, fullrank.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")],
    corpus: Annotated[
        str | None,
        typer.Option(help="Corpus with the texts. Default: the one that the run names."),
    ] = None,
    split: Annotated[str, typer.Option(help="train, dev, or several with a comma.")] = "train",
    negatives: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="The first N negatives of each example. Default: all; where every row has the "
            "same number, as many as every example with negatives has.",
        ),
    ] = None,
    score: Annotated[
        str | None,
        typer.Option(help="Write this score of the passages. Default: teacher, where one is due."),
    ] = None,
    scale: Annotated[
        str,
        typer.Option(help="Scores of an example as: none, minmax, softmax or standard."),
    ] = "none",
    seed: Annotated[int, typer.Option(help="Seed of the order passages are shown in.")] = 0,
    as_json: o.Json = False,
) -> None:
    """Write the kept examples of a run in the format of a trainer.

    An example that lacks what the format needs is left out and counted. docs/training-data.md says
    who reads what.
    """
    from llmrank.api import exporting

    told = exporting.export(
        run,
        format,
        out,
        corpus=corpus,
        split=split,
        negatives=negatives,
        score=score,
        scale=scale,  # type: ignore[arg-type]  # checked by the library
        seed=seed,
    )
    rows = ", ".join(f"{count} rows in {name}" for name, count in told.rows.items())
    screen.note(f"{told.examples} of {told.kept} kept examples into {out}: {rows}")
    for lack, count in told.left_out.items():
        screen.note(f"  {count} left out: {lack}")
    if told.unscored:
        screen.note(f"  {told.unscored} passages left out: no score {told.score!r}")
    if as_json:
        screen.show(asdict(told))
