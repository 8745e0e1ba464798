from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Command
from tests.trainers import data


def test_export(llmrank: Command, tmp_path: Path) -> None:
    data.write(tmp_path / "run")
    given = ["--format", "st-kldiv", "--negatives", 2, "--scale", "softmax", "--out", "out"]
    done = llmrank("export", "run", *given, "--json")
    assert done.code == 0
    told = json.loads(done.out)
    count = len(data.TOPICS) - 1
    assert (told["examples"], told["rows"]) == (count, {"train.jsonl": 2 * count})
    assert f"{count} of {count} kept examples into out" in done.err
    assert len(data.rows(tmp_path / "out" / "train.jsonl")) == 2 * count


def test_what_is_left_out_is_told(llmrank: Command, tmp_path: Path) -> None:
    passages = [
        data.passage("tides-0", 1, teacher=1),
        data.passage("bees-0", 0, teacher=0),
        data.passage("bees-1", 0),
    ]
    data.write(tmp_path / "run", [data.example("a#0", passages), data.example("a#1", [])])
    done = llmrank("export", "run", "--format", "st-margin", "--out", "out")
    assert (done.code, done.out) == (0, "")
    assert "1 of 2 kept examples into out: 1 rows in train.jsonl" in done.err
    assert "1 left out: no positive passage" in done.err
    assert "1 passages left out: no score 'teacher'" in done.err


@pytest.mark.parametrize(
    ("given", "code", "told"),
    [
        (["--format", "nosuch"], 3, "st-kldiv"),
        (["--format", "st-pairs", "--split", "test"], 3, "--split"),
        (["--format", "st-pairs", "--negatives", "2"], 3, "--negatives"),
        (["--format", "st-triplets", "--negatives", "0"], 2, "--negatives"),
        (["--format", "st-kldiv", "--scale", "log"], 3, "minmax"),
        (["--format", "st-kldiv", "--score", "nosuch"], 3, "--score"),
        (["--format", "st-pairs", "--corpus", "missing"], 3, "missing"),
        (["--format", "st-pairs", "--out", "run"], 3, "--out"),
        ([], 2, "--format"),
    ],
)
def test_mistakes_leave_nothing_behind(
    llmrank: Command, tmp_path: Path, given: list[str], code: int, told: str
) -> None:
    data.write(tmp_path / "run")
    before = set(tmp_path.iterdir())
    done = llmrank("export", "run", "--out", "out", *given)
    assert (done.code, done.out) == (code, "")
    assert told in done.err
    assert set(tmp_path.iterdir()) == before
