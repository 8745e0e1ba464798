"""Recorded rerankers, driven again by our windows and readers."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from benchmarks.replay import Row, replay, rows

CHATTY = "BM25__vicuna-13b-v1.5__top100__20230819T"
QRELS = {"q": {"d25": 1}}


@pytest.fixture(scope="module")
def replayed(shared_data: Path) -> dict[str, Row]:
    """A row for every recorded log."""
    folder = shared_data / "dl19"
    if not (folder / "llm_responses").is_dir():
        pytest.skip("shared/data/dl19/llm_responses is not here")
    return {row.name: row for row in rows(folder)}


@pytest.mark.slow
def test_every_recorded_run_that_has_a_log_is_reproduced(replayed: dict[str, Row]) -> None:
    assert len(replayed) == 33
    without_run = {name for name, row in replayed.items() if row.reproduced is None}
    assert without_run == {
        "BM25__rank_vicuna_7b_v1__top100__20230913T072142",
        f"{CHATTY}165105",
    }
    for name in replayed.keys() - without_run:
        assert (replayed[name].queries, replayed[name].reproduced) == (43, 43)


@pytest.mark.slow
def test_the_published_figure_comes_out(replayed: dict[str, Row]) -> None:
    row = replayed["BM25__rank_vicuna_7b_v1__top100__20230913T163610"]
    assert row.digits == pytest.approx(0.6682, abs=5e-5)


@pytest.mark.slow
def test_only_answers_in_another_form_are_read_differently(replayed: dict[str, Row]) -> None:
    """Digits of prose put the last passage first and cost; where there are none, all is equal."""
    assert {name: row.differing for name, row in replayed.items() if row.differing} == {
        f"{CHATTY}155743": 384,
        f"{CHATTY}162526": 383,
        "BM25__vicuna-7b-v1.5__top100__20230819T145259": 20,
    }
    for row in replayed.values():
        assert row.anchored >= row.digits
        assert bool(row.unseen) == bool(row.differing)
        assert row.differing or row.anchored == row.digits


def put(folder: Path, windows: list[tuple[int, list[int], str]]) -> Path:
    """A log of one query over 30 documents, and the first-stage run of these."""
    (folder / "runs").mkdir()
    lines = [f"q Q0 d{i} {i} {30 - i} t\n" for i in range(30)]
    (folder / "runs" / "first.trec").write_text("".join(lines))
    path = folder / "first__model.jsonl.gz"
    with gzip.open(path, "wt") as log:
        for start, shown, text in windows:
            docs = [f"d{i}" for i in shown]
            log.write(
                json.dumps({"qid": "q", "start": start, "docids": docs, "response": text}) + "\n"
            )
    return path


def test_a_log_is_replayed_window_by_window(tmp_path: Path) -> None:
    first = (10, list(range(10, 30)), "[16]")
    second = (0, [*range(10), 25, *range(10, 19)], "[11] > [1]")
    row = replay(tmp_path, put(tmp_path, [first, second]), QRELS)
    assert (row.answers, row.differing, row.unseen) == (2, 0, 0)
    assert (row.digits, row.anchored) == (1.0, 1.0)


def test_a_window_that_was_never_shown_is_noticed(tmp_path: Path) -> None:
    first = (10, list(range(10, 30)), "[16]")
    second = (0, list(range(20)), "[11] > [1]")
    with pytest.raises(SystemExit, match="1 windows are not those recorded"):
        replay(tmp_path, put(tmp_path, [first, second]), QRELS)


def test_what_the_anchored_reader_would_have_shown_is_counted(tmp_path: Path) -> None:
    first = (10, list(range(10, 30)), "20 passages are provided.")
    second = (0, [*range(10), 29, *range(10, 19)], "[1] > [2]")
    row = replay(tmp_path, put(tmp_path, [first, second]), QRELS)
    assert (row.differing, row.unseen) == (1, 1)
