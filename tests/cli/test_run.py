from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmrank import trec
from llmrank.api import parse_pipeline
from llmrank.errors import SpecError
from tests.cli.conftest import Command
from tests.judge import asked
from tests.servers import Server

PIPELINE = "bm25@8 >> query2doc(n=2) >> yesno@4"


@pytest.fixture
def served(collection: Path, server: Server) -> list[object]:
    model = ["--model", "openai:m", "--base-url", server.url]
    return ["--queries", collection, "--corpus", collection, "--limit", 3, *model]


def test_one_line_is_one_run(
    llmrank: Command, served: list[object], server: Server, tmp_path: Path
) -> None:
    done = llmrank("run", PIPELINE, *served, "--out", "a", "--json")
    assert done.code == 0, done.err
    summary = json.loads(done.out)
    assert (summary["queries"], summary["requests"]) == (3, asked(server))
    assert summary["requests"] == 3 * (2 + 4)
    folder = tmp_path / "a"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["pipeline"] == str(parse_pipeline(PIPELINE))
    assert set(manifest["data"]) == {"corpus", "queries"}
    assert [row["_id"] for row in trec.read_jsonl(folder / "expansions.jsonl")] == [
        "q01",
        "q02",
        "q03",
    ]
    first, last = (dict(trec.read_run(folder / f"{name}.trec")) for name in ("first", "run"))
    assert [len(hits) for hits in first.values()] == [8, 8, 8]
    assert {q: {d for d, _ in hits} for q, hits in first.items()} == {
        q: {d for d, _ in hits} for q, hits in last.items()
    }


def test_its_parts_give_the_same(
    llmrank: Command, served: list[object], server: Server, tmp_path: Path
) -> None:
    """As search, expand and rerank one after another; what they asked is not asked again."""
    assert llmrank("expand", *served, "--method", "query2doc(n=2)", "-k", 8, "--out", "e").code == 0
    assert (
        llmrank(
            "rerank", *("--run", "e/run.trec", *served), "--method", "yesno@4", "--out", "r"
        ).code
        == 0
    )
    before = asked(server)
    assert llmrank("run", PIPELINE, *served, "--out", "p").code == 0
    assert asked(server) == before
    parts, whole = (dict(trec.read_run(tmp_path / name / "run.trec")) for name in ("r", "p"))
    assert {q: [d for d, _ in hits] for q, hits in parts.items()} == {
        q: [d for d, _ in hits] for q, hits in whole.items()
    }


def test_a_file_has_the_options_and_the_command_line_goes_before_it(
    llmrank: Command, collection: Path, server: Server, tmp_path: Path
) -> None:
    (tmp_path / "p.toml").write_text(
        f"pipeline = '{PIPELINE}'\ncorpus = '{collection}'\nqueries = '{collection}'\n"
        f"model = 'openai:m'\nbase-url = '{server.url}'\nlimit = 1\nout = 'from-file'\n"
    )
    assert llmrank("run", "p.toml").code == 0
    assert len(dict(trec.read_run(tmp_path / "from-file" / "run.trec"))) == 1
    assert llmrank("run", "p.toml", "--limit", 2, "--out", "given").code == 0
    assert len(dict(trec.read_run(tmp_path / "given" / "run.trec"))) == 2


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("pipeline = 'bm25'\ncolour = 1\n", "no option 'colour'"),
        ("corpus = 'c'\n", "no pipeline"),
        ("pipeline = \n", "cannot be read"),
    ],
)
def test_what_is_wrong_in_a_file_is_said(
    llmrank: Command, tmp_path: Path, content: str, told: str
) -> None:
    (tmp_path / "p.toml").write_text(content)
    done = llmrank("run", "p.toml", "--corpus", "c", "--queries", "q")
    assert done.code == 3
    assert told in done.err
    assert "p.toml" in done.err


@pytest.mark.parametrize("text", ["bm25", "bm25@10 >> adaptive@5", "hybrid@100 >> query2doc"])
def test_names_are_read_back(text: str) -> None:
    pipeline = parse_pipeline(text)
    assert str(parse_pipeline(str(pipeline))) == str(pipeline)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "yesno@10",
        "bm25(k1=2)",
        "bm25@0",
        "bm25 >> yesno@5 >> query2doc",
        "bm25 >> query2doc >> query2doc",
        "bm25 >> nosuch@5",
        "query2doc >> yesno@4",
    ],
)
def test_what_cannot_be_a_pipeline(text: str) -> None:
    with pytest.raises(SpecError):
        parse_pipeline(text)
