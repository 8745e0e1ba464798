from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Command

QRELS = "a 0 d1 1\na 0 d2 0\nb 0 d1 2\n"
GOOD = "a Q0 d1 1 2 t\na Q0 d2 2 1 t\nb Q0 d1 1 1 t\n"
BAD = "a Q0 d2 1 2 t\na Q0 d1 2 1 t\n"


@pytest.fixture
def files(tmp_path: Path) -> None:
    for name, text in (("qrels", QRELS), ("good", GOOD), ("bad", BAD)):
        (tmp_path / name).write_text(text)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "run.trec").write_text(GOOD)


@pytest.mark.usefixtures("files")
def test_runs_and_run_folders_side_by_side(llmrank: Command) -> None:
    done = llmrank("eval", "good", "bad", "folder", "--qrels", "qrels", "--json")
    good, bad, folder = json.loads(done.out)
    assert done.code == 0
    assert (good["nDCG@10"], good["MAP"], good["MRR@10"], good["Recall@100"]) == (1, 1, 1, 1)
    assert (bad["MRR@10"], bad["MAP"], bad["Recall@100"]) == (0.25, 0.25, 0.5)
    assert {**folder, "run": "good", "against": None} == {**good, "against": None}
    assert bad["against"]["run"] == "good"
    assert (bad["against"]["losses"], bad["against"]["wins"]) == (2, 0)
    assert folder["against"]["difference"] == 0


@pytest.mark.usefixtures("files")
def test_a_query_that_is_missing_counts_0_and_is_told(llmrank: Command) -> None:
    done = llmrank("eval", "good", "bad", "--qrels", "qrels")
    assert "bad lacks 1 judged queries" in done.err
    assert "1.0000" in done.out
    assert "0/2/0" in done.out


@pytest.mark.usefixtures("files")
def test_only_common_queries(llmrank: Command) -> None:
    good, bad = json.loads(
        llmrank("eval", "good", "bad", "--qrels", "qrels", "--common", "--json").out
    )
    assert (good["queries"], bad["queries"], bad["MRR@10"]) == (1, 1, 0.5)


@pytest.mark.usefixtures("files")
def test_compare_names_the_base(llmrank: Command) -> None:
    done = llmrank("eval", "good", "--compare", "bad", "--qrels", "qrels", "--json")
    base, other = json.loads(done.out)
    assert (base["run"], "against" in base) == ("bad", False)
    assert (other["against"]["run"], other["against"]["wins"]) == ("bad", 2)


@pytest.mark.usefixtures("files")
def test_the_lowest_grade_that_counts(llmrank: Command) -> None:
    (row,) = json.loads(llmrank("eval", "good", "--qrels", "qrels", "--relevant", 2, "--json").out)
    assert row["Recall@100"] == 0.5
    assert row["nDCG@10"] == 1


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(
    ("given", "code", "told"),
    [
        (["nowhere", "--qrels", "qrels"], 3, "nowhere"),
        (["good", "--qrels", "nowhere"], 3, "nowhere"),
        ([".", "--qrels", "qrels"], 3, "run.trec"),
        (["good", "--qrels", "good"], 3, "good:1"),
        (["good"], 2, "--qrels"),
        ([], 2, "runs"),
        (["good", "--qrels", "qrels", "--relevant", "0"], 2, "--relevant"),
    ],
)
def test_mistakes(llmrank: Command, given: list[str], code: int, told: str) -> None:
    done = llmrank("eval", *given)
    assert (done.code, done.out) == (code, "")
    assert told in done.err


def test_runs_without_a_common_query(llmrank: Command, tmp_path: Path) -> None:
    (tmp_path / "qrels").write_text(QRELS)
    (tmp_path / "one").write_text("a Q0 d1 1 1 t\n")
    (tmp_path / "two").write_text("b Q0 d1 1 1 t\n")
    done = llmrank("eval", "one", "two", "--qrels", "qrels", "--common")
    assert (done.code, done.out) == (3, "")
    assert "no judged query" in done.err


def test_the_example_collection(llmrank: Command, bm25: Path, collection: Path) -> None:
    (row,) = json.loads(llmrank("eval", bm25, "--qrels", collection, "--json").out)
    assert row["queries"] == 30
    assert 0.3 < row["nDCG@10"] < 0.5
