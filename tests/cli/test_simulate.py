from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Command

QUICK = ("--queries-count", 6, "--seeds", 2, "--n", 40)


def test_drawn_data(llmrank: Command) -> None:
    given = ["--method", "sliding", "--method", "yesno@40 >> sliding@10", *QUICK]
    found = json.loads(llmrank("simulate", *given, "--json").out)
    assert (found["queries"], found["seeds"]) == (6, 2)
    assert found["judge"] == {
        "deviation": 1.1, "fixed": 0.5, "fresh": "gumbel", "bias": 0.0, "scale": 1.0
    }  # fmt: skip
    first, sliding, cascade = found["methods"]
    assert first["method"] == "first stage"
    assert first["nDCG@10"] == pytest.approx(0.5, abs=0.05)
    assert (sliding["calls"], sliding["rounds"], sliding["documents_shown"]) == (3, 3, 60)
    assert (cascade["calls"], cascade["rounds"]) == (41, 2)
    assert sliding["tokens"] == 60 * 120 + 3 * 100
    low, high = sliding["interval"]
    assert low <= sliding["nDCG@10"] <= high
    assert sliding["difference"] == pytest.approx(sliding["nDCG@10"] - first["nDCG@10"])


def test_a_run_with_judgements(llmrank: Command, bm25: Path, collection: Path) -> None:
    given = ["--run", bm25, "--qrels", collection, "--method", "yesno", "--seeds", 2, "--json"]
    found = json.loads(llmrank("simulate", *given).out)
    assert found["queries"] == 30
    perfect = json.loads(llmrank("simulate", *given, "--noise", 0).out)
    for noisy, right in zip(found["methods"][1:], perfect["methods"][1:], strict=True):
        assert noisy["nDCG@10"] < right["nDCG@10"]
        assert right["difference"] > 0
    few = json.loads(llmrank("simulate", *given, "--queries-count", 4, "--n", 5).out)
    assert few["queries"] == 4
    assert few["methods"][1]["calls"] <= 5


def test_the_table_has_a_line_for_every_method(llmrank: Command) -> None:
    done = llmrank("simulate", "--method", "sliding", "--fresh", "gaussian", "--bias", 0.5, *QUICK)
    assert done.code == 0
    heading, first, sliding = done.out.rstrip().split("\n")
    assert heading.split()[:2] == ["method", "nDCG@10"]
    assert first.startswith("first stage")
    assert sliding.split()[-4:] == ["3", "3", "60", "7,500"]


def test_another_depth_is_named(llmrank: Command) -> None:
    given = ["--method", "sliding", *QUICK]
    first = json.loads(llmrank("simulate", *given, "--at", 1, "--json").out)["methods"][0]
    ten = json.loads(llmrank("simulate", *given, "--json").out)["methods"][0]
    assert "nDCG@10" not in first
    assert first["nDCG@1"] != ten["nDCG@10"]
    assert llmrank("simulate", *given, "--at", 5).out.split()[:2] == ["method", "nDCG@5"]


def test_options_change_the_outcome(llmrank: Command) -> None:
    def reached(*options: object) -> float:
        given = ["--method", "sliding", *QUICK, "--json", *options]
        return float(json.loads(llmrank("simulate", *given).out)["methods"][1]["nDCG@10"])

    assert reached() == reached()
    changed = [("--noise", 2), ("--fixed", 0.9), ("--fresh", "gaussian"), ("--bias", 1)]
    assert len({reached(), *(reached(*options) for options in changed)}) == 5


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--method", "nothing"], "no method named"),
        (["--method", "yesno", "--run", "x.trec"], "belong together"),
        (["--method", "yesno", "--fresh", "cauchy"], "gumbel or gaussian"),
        (["--method", "yesno", "--first-stage", "0.01"], "random order"),
    ],
)
def test_what_cannot_be_simulated(llmrank: Command, given: list[str], told: str) -> None:
    done = llmrank("simulate", *given)
    assert done.code == 3
    assert told in done.err
    assert llmrank("simulate").code == 2
