from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import pytest

from llmrank import trec
from tests.cli.conftest import Command
from tests.judge import asked
from tests.servers import Server


@pytest.fixture
def data(collection: Path) -> list[object]:
    return ["--corpus", collection, "--queries", collection]


def test_bm25(llmrank: Command, data: list[object], tmp_path: Path) -> None:
    printed = llmrank("search", *data, "-k", 5, "--limit", 7)
    assert (printed.code, printed.err) == (0, "")
    filed = llmrank("search", *data, "-k", 5, "--limit", 7, "--out", "first.trec.gz")
    assert (filed.code, filed.out) == (0, "")
    assert gzip.decompress((tmp_path / "first.trec.gz").read_bytes()).decode() == printed.out
    run = dict(trec.read_run(tmp_path / "first.trec.gz"))
    assert list(run) == [f"q{i:02}" for i in range(1, 8)]
    assert {len(hits) for hits in run.values()} == {5}
    assert {line.split()[-1] for line in printed.out.splitlines()} == {"bm25"}


def test_an_index_is_built_once_and_used_again(
    llmrank: Command, data: list[object], tmp_path: Path
) -> None:
    memory = llmrank("search", *data).out
    assert llmrank("search", *data, "--index", "ix").out == memory
    built = {path: path.stat().st_mtime_ns for path in (tmp_path / "ix").rglob("*")}
    assert llmrank("search", *data, "--index", "ix").out == memory
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "ix").rglob("*")} == built


@pytest.mark.parametrize("change", ["fewer", "more", "other text", "other order"])
def test_an_index_of_another_corpus_does_not_answer(
    llmrank: Command, collection: Path, tmp_path: Path, change: str
) -> None:
    lines = (collection / "corpus.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "corpus.jsonl").write_text("".join(lines))
    given = ["--corpus", "corpus.jsonl", "--queries", collection, "--limit", 1]
    assert llmrank("search", *given, "--index", "ix").code == 0
    changed = {
        "fewer": lines[:-1],
        "more": [*lines, '{"_id": "new", "text": "why does bread rise"}\n'],
        "other text": [lines[0].replace("yeast", "east"), *lines[1:]],
        "other order": [*lines[1:], lines[0]],
    }
    (tmp_path / "corpus.jsonl").write_text("".join(changed[change]))
    done = llmrank("search", *given, "--index", "ix")
    assert (done.code, done.out) == (3, "")
    assert "other documents" in done.err
    assert llmrank("search", *given).code == 0


def test_an_index_of_another_analysis_does_not_answer(llmrank: Command, data: list[object]) -> None:
    plain = llmrank("search", *data, "--analyzer", "plain", "--index", "ix")
    assert plain.code == 0
    assert llmrank("search", *data, "--index", "ix").out == plain.out
    assert llmrank("search", *data).out != plain.out
    done = llmrank("search", *data, "--analyzer", "english", "--index", "ix")
    assert done.code == 3
    assert "'plain'" in done.err


def test_which_bm25(llmrank: Command, data: list[object], tmp_path: Path) -> None:
    given = ["--bm25", "bm25+", "--k1", 1.2, "--b", 0.75, "--delta", 1]
    built = llmrank("search", *data, *given, "--index", "ix")
    assert (built.code, built.err) == (0, "")
    described = json.loads((tmp_path / "ix" / "bm25" / "index.json").read_text())
    assert [described[n] for n in ("variant", "k1", "b", "delta")] == ["bm25+", 1.2, 0.75, 1.0]
    assert built.out != llmrank("search", *data).out
    for same in ([], given, ["--k1", 1.2]):
        assert llmrank("search", *data, *same, "--index", "ix").out == built.out
    for other, told in (
        (["--bm25", "lucene"], "'bm25+', not 'lucene'"),
        (["--k1", 0.9], "the k1 1.2, not 0.9"),
        (["--delta", 0.5], "the delta 1.0, not 0.5"),
    ):
        done = llmrank("search", *data, *other, "--index", "ix")
        assert (done.code, done.out) == (3, "")
        assert told in done.err
        assert "ix" in done.err


def test_dense_and_hybrid_with_a_server(
    llmrank: Command, data: list[object], server: Server
) -> None:
    encoder = ["--encoder", "openai:m", "--encoder-url", server.url, "--limit", 2, "-k", 9]
    dense = llmrank("search", *data, *encoder, "--first-stage", "dense", "--index", "ix")
    assert dense.code == 0
    assert len(dense.out.splitlines()) == 18
    sent = asked(server)
    assert re.findall(r"(\w+): (\d+) embedding requests", dense.err) == [
        ("index", str(sent - 1)),
        ("queries", "1"),
    ]
    hybrid = llmrank("search", *data, *encoder, "--first-stage", "hybrid", "--index", "ix")
    assert hybrid.code == 0
    # The vectors of the documents are there already.
    assert asked(server) == sent + 1
    assert {line.split()[-1] for line in hybrid.out.splitlines()} == {"hybrid-rrf"}
    fused = ["--first-stage", "hybrid", "--index", "ix", "--fusion", "minmax", "--dense-weight"]
    dense_alone = llmrank("search", *data, *encoder, *fused, 1)
    assert dense_alone.code == 0
    assert {line.split()[-1] for line in dense_alone.out.splitlines()} == {"hybrid-minmax-1"}
    other = ["--encoder", "openai:other", "--encoder-url", server.url, "--first-stage", "dense"]
    done = llmrank("search", *data, *other, "--index", "ix")
    assert done.code == 3
    assert "openai:other" in done.err


def test_a_tuned_weight(
    llmrank: Command, data: list[object], server: Server, tmp_path: Path
) -> None:
    pytest.importorskip("ir_measures")
    encoder = ["--encoder", "openai:m", "--encoder-url", server.url, "--index", "ix"]
    hybrid = ["search", *data, *encoder, "--first-stage", "hybrid", "--fusion", "zscore", "-k", 9]
    qrels = f"{data[1]}/qrels/test.tsv"
    done = llmrank(*hybrid, "--tune", qrels, "--out", "tuned.trec")
    assert (done.code, done.out) == (0, "")
    weights = done.err.partition("by fold: ")[2].partition(" (")[0].split()
    assert len(weights) == 5
    assert all(0 <= float(weight) <= 1 for weight in weights)
    assert "30 judged queries" in done.err
    lines = (tmp_path / "tuned.trec").read_text().splitlines()
    assert {line.split()[-1] for line in lines} == {"hybrid-zscore-tuned"}
    assert len(dict(trec.read_run(tmp_path / "tuned.trec"))) == 30


@pytest.mark.local
def test_dense_with_the_local_model(llmrank: Command, tmp_path: Path) -> None:
    texts = {"cat": "A cat purrs.", "car": "A car needs fuel.", "sun": "The sun shines."}
    trec.write_jsonl(tmp_path / "docs", [{"_id": i, "text": t} for i, t in texts.items()])
    trec.write_jsonl(tmp_path / "queries", [{"_id": "q", "text": "kittens"}])
    data = ["--corpus", "docs", "--queries", "queries", "--first-stage"]
    done = llmrank("search", *data, "dense")
    assert done.code == 0
    assert done.out.split()[2] == "cat"
    assert llmrank("search", *data, "hybrid").out.split()[2] == "cat"


@pytest.mark.parametrize(
    ("given", "code", "told"),
    [
        (["--first-stage", "nosuch"], 3, "bm25, dense, hybrid"),
        (["--fusion", "nosuch"], 3, "rrf, minmax"),
        (["--analyzer", "nosuch"], 3, "nosuch"),
        (["--corpus", "missing"], 3, "missing"),
        (["--queries", "missing"], 3, "missing"),
        (["--out", "nowhere/first.trec"], 3, "nowhere/first.trec"),
        (["--first-stage", "dense", "--encoder", "nosuch:x"], 3, "no kind of model"),
        (["--tune", "missing"], 3, "--first-stage hybrid"),
        (["--tune", "missing", "--first-stage", "hybrid"], 3, "missing"),
        (["--dense-weight", "0.4"], 3, "not for bm25"),
        (["--fusion", "minmax"], 3, "minmax is for hybrid"),
        (["--bm25", "bm26"], 3, "there is no BM25 'bm26'"),
        (["--delta", "1"], 3, "'lucene' has no delta"),
        (["--k1", "inf"], 3, "k1=inf"),
        (["--b", "2"], 2, "--b"),
        (
            ["--first-stage", "hybrid", "--fusion", "product", "--dense-weight", "0.4"],
            3,
            "no weight",
        ),
        (["-k", "0"], 2, "--k"),
        (["--dense-weight", "1.5"], 2, "--dense-weight"),
    ],
)
def test_mistakes(
    llmrank: Command, data: list[object], tmp_path: Path, given: list[str], code: int, told: str
) -> None:
    done = llmrank("search", *data, *given)
    assert (done.code, done.out) == (code, "")
    assert told in done.err
    assert not list(tmp_path.iterdir())


def test_a_mistake_while_building_leaves_no_index(llmrank: Command, tmp_path: Path) -> None:
    (tmp_path / "docs").write_text('{"_id": "1", "text": "a cat"}\n{"_id": "1", "text": "a"}\n')
    (tmp_path / "queries").write_text('{"_id": "q", "text": "cat"}\n')
    given = ["--corpus", "docs", "--queries", "queries", "--index", "ix"]
    done = llmrank("search", *given)
    assert done.code == 3
    assert "'1' occurs twice" in done.err
    (tmp_path / "docs").write_text('{"_id": "1", "text": "a cat"}\n')
    assert llmrank("search", *given).out.split()[2] == "1"


def test_hits_as_json(llmrank: Command, data: list[object], tmp_path: Path) -> None:
    printed = llmrank("search", *data, "--limit", "2", "-k", "3", "--json")
    hits = json.loads(printed.out)
    run = llmrank("search", *data, "--limit", "2", "-k", "3").out
    assert [(h["query"], h["document"], str(h["rank"])) for h in hits] == [
        (line.split()[0], line.split()[2], line.split()[3]) for line in run.splitlines()
    ]
    both = llmrank("search", *data, "--limit", "2", "-k", "3", "--json", "--out", "a.trec")
    assert (both.out, (tmp_path / "a.trec").read_text()) == (printed.out, run)
