from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmrank import trec
from llmrank.retrieve.analysis import analyzer_named
from tests import servers
from tests.cli.conftest import Command
from tests.judge import WRITTEN, asked
from tests.servers import Server


@pytest.fixture
def served(collection: Path, server: Server) -> list[object]:
    model = ["--model", "openai:m", "--base-url", server.url]
    return ["--queries", collection, "--corpus", collection, "--limit", 4, *model]


def _records(folder: Path) -> list[dict[str, object]]:
    return list(trec.read_jsonl(folder / "expansions.jsonl"))


def test_query2doc(llmrank: Command, served: list[object], server: Server, tmp_path: Path) -> None:
    done = llmrank("expand", *served, "--method", "query2doc(n=2)", "--out", "a")
    assert (done.code, done.out) == (0, "")
    assert asked(server) == 8
    records = _records(tmp_path / "a")
    assert [record["_id"] for record in records] == ["q01", "q02", "q03", "q04"]
    assert all(record["texts"] == [WRITTEN, WRITTEN] for record in records)
    assert all(record["expanded"] for record in records)
    run = dict(trec.read_run(tmp_path / "a" / "run.trec"))
    assert list(run) == ["q01", "q02", "q03", "q04"]
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert manifest["expansion"] == "query2doc(n=2, repeat=5)"
    assert list(manifest["prompts"]) == ["query2doc"]
    assert len({body["seed"] for body in server.bodies("/chat/completions")}) == 8


def test_what_bm25_searches_with(llmrank: Command, server: Server, tmp_path: Path) -> None:
    """The query five times and each text once: a document of text terms alone is found too."""
    texts = {"query": "tides", "text": "yeast", "none": "moon"}
    trec.write_jsonl(tmp_path / "docs", [{"_id": i, "text": t} for i, t in texts.items()])
    trec.write_jsonl(tmp_path / "queries", [{"_id": "q", "text": "tides"}])
    model = ["--model", "openai:m", "--base-url", server.url]
    done = llmrank("expand", "--queries", "queries", "--corpus", "docs", *model, "--out", "a")
    assert done.code == 0
    ((_, hits),) = trec.read_run(tmp_path / "a" / "run.trec")
    scores = dict(hits)
    assert list(scores) == ["query", "text"]
    assert scores["query"] == pytest.approx(5 * scores["text"], rel=1e-5)
    assert "yeast" in analyzer_named("english")(WRITTEN)


def test_again_sends_nothing_and_writes_the_same(
    llmrank: Command, served: list[object], server: Server, tmp_path: Path
) -> None:
    assert llmrank("expand", *served, "--out", "a").code == 0
    before = {p.name: p.read_bytes() for p in (tmp_path / "a").glob("*.trec")}
    sent = asked(server)
    assert llmrank("expand", *served, "--out", "a").code == 0
    assert asked(server) == sent
    assert {p.name: p.read_bytes() for p in (tmp_path / "a").glob("*.trec")} == before


def test_a_failed_text_leaves_the_plain_query(
    llmrank: Command, served: list[object], server: Server, collection: Path, tmp_path: Path
) -> None:
    server.script(
        "/chat/completions",
        servers.sends(servers.chat("")),
        servers.refuses(400, "this text is too long"),
        servers.sends(servers.chat(None, finish="content_filter")),
        servers.sends(servers.chat("I'm sorry, but I can't help with that.")),
    )
    done = llmrank("expand", *served, "--in-flight", 1, "--out", "a")
    assert done.code == 5
    records = _records(tmp_path / "a")
    assert not any(record["expanded"] for record in records)
    samples = [record["samples"] for record in records]
    told = [sample[0]["status"] for sample in samples if isinstance(sample, list)]
    assert sorted(told) == ["failed", "malformed", "refused", "refused"]
    plain = llmrank("search", "--corpus", collection, "--queries", collection, "--limit", 4)
    expected = trec.read_run_lines(_written(tmp_path / "plain.trec", plain.out))
    found = trec.read_run_lines(tmp_path / "a" / "run.trec")
    # With no text, every term has the same weight as before, five times.
    assert [(h.query_id, h.doc_id) for _, h in found] == [
        (h.query_id, h.doc_id) for _, h in expected
    ]
    assert llmrank("expand", *served, "--max-failures", 1, "--out", "a").code == 0


def _written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_hyde_with_servers(
    llmrank: Command, served: list[object], server: Server, tmp_path: Path
) -> None:
    given = ["--method", "hyde(n=3)", "--encoder", "openai:e", "--encoder-url", server.url]
    done = llmrank("expand", *served, *given, "-k", 7, "--out", "a")
    assert done.code == 0
    assert len(server.bodies("/chat/completions")) == 12
    run = dict(trec.read_run(tmp_path / "a" / "run.trec"))
    assert {len(hits) for hits in run.values()} == {7}
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert manifest["encoder"] == f"openai:e@{server.url}"


def test_what_is_printed(llmrank: Command, served: list[object]) -> None:
    lines = llmrank("expand", *served).out.splitlines()
    assert [json.loads(line)["_id"] for line in lines] == ["q01", "q02", "q03", "q04"]
    assert json.loads(llmrank("expand", *served, "--json").out)["queries"] == 4


def test_a_cap(llmrank: Command, served: list[object], tmp_path: Path) -> None:
    done = llmrank("expand", *served, "--max-calls", 2, "--in-flight", 1, "--out", "a")
    assert done.code == 6
    assert [r["expanded"] for r in _records(tmp_path / "a")] == [True, True, False, False]
    assert llmrank("expand", *served, "--max-calls", 2, "--out", "a").code == 0


@pytest.mark.parametrize(
    ("given", "code", "told"),
    [
        (["--method", "nosuch"], 3, "no expansion named 'nosuch'"),
        (["--method", "query2doc(n=0)"], 3, "n must be at least 1"),
        (["--method", "query2doc(n=x)"], 3, "int"),
        (["--method", "query2doc@3"], 3, "no depth"),
        (["--prompt", "hyde=hyde"], 3, "would not be used"),
        (["--prompt", "query2doc=yesno"], 3, "needs `write`"),
        (["--queries", "missing"], 3, "missing"),
        (["--corpus", "missing"], 3, "missing"),
        (["--limit", "0"], 2, "--limit"),
        (["--first-stage", "nonsense"], 3, "no first stage named 'nonsense'"),
        (["--first-stage", "dense", "--method", "keywords"], 3, "first stage of bm25, not"),
        (["--qrels", "missing"], 3, "missing"),
    ],
)
def test_mistakes_leave_nothing_behind(
    llmrank: Command, served: list[object], tmp_path: Path, given: list[str], code: int, told: str
) -> None:
    done = llmrank("expand", *served, *given, "--out", "a")
    assert (done.code, done.out) == (code, "")
    assert told in done.err
    assert not list(tmp_path.iterdir())


def test_what_it_did_to_the_judged_queries(
    llmrank: Command, served: list[object], collection: Path, tmp_path: Path
) -> None:
    qrels = collection / "qrels" / "test.tsv"
    done = llmrank("expand", *served, "--qrels", qrels, "--out", "a")
    assert done.code == 0, done.err
    assert llmrank("search", *served[:6], "--out", "plain.trec").code == 0
    plain, searched = (
        dict(trec.read_run(tmp_path / name)) for name in ("a/plain.trec", "plain.trec")
    )
    assert plain == searched
    effect = json.loads((tmp_path / "a" / "summary.json").read_text())["effect"]
    rows = list(trec.read_jsonl(tmp_path / "a" / "effects.jsonl"))
    differences = [row["difference"] for row in rows]
    assert differences == sorted(differences, reverse=True)  # type: ignore[type-var]
    assert sum(differences) / 4 == pytest.approx(effect["difference"])  # type: ignore[arg-type]
    assert effect["wins"] + effect["losses"] + effect["ties"] == effect["n"] == 4
    assert f"{effect['wins']} won, {effect['losses']} lost" in done.err
    assert all(row["texts"] == [WRITTEN] for row in rows)


def test_judgements_without_a_corpus_are_refused(
    llmrank: Command, collection: Path, server: Server
) -> None:
    done = llmrank(
        *("expand", "--queries", collection, "--model", "openai:m", "--base-url", server.url),
        *("--qrels", collection / "qrels" / "test.tsv", "--out", "a"),
    )
    assert (done.code, asked(server)) == (3, 0)
    assert "--corpus" in done.err


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--first-stage", "nonsense"], "no first stage named 'nonsense'"),
        (["--first-stage", "dense", "--method", "keywords"], "first stage of bm25, not"),
    ],
)
def test_the_first_stage_counts_without_a_corpus_too(
    llmrank: Command, collection: Path, server: Server, tmp_path: Path, given: list[str], told: str
) -> None:
    model = ["--model", "openai:m", "--base-url", server.url]
    done = llmrank("expand", "--queries", collection, *model, *given, "--out", "a")
    assert (done.code, asked(server)) == (3, 0)
    assert told in done.err
    assert not list(tmp_path.iterdir())


def test_queries_are_written_for_the_first_stage_that_is_named(
    llmrank: Command, collection: Path, server: Server
) -> None:
    model = ["--model", "openai:m", "--base-url", server.url]
    encoder = ["--encoder", "openai:e", "--encoder-url", server.url, "--first-stage", "dense"]
    given = ["expand", "--queries", collection, "--limit", 2, *model, *encoder]
    assert llmrank(*given).code == 0
    assert server.bodies("/embeddings")


def test_documents_are_graded(llmrank: Command, served: list[object], tmp_path: Path) -> None:
    done = llmrank(
        "expand", *served, "--method", "gated(query2doc(n=4, repeat=1), by=grade)", "--out", "a"
    )
    assert done.code == 0, done.err
    notes = [str(record["note"]) for record in _records(tmp_path / "a")]
    assert any("grade@5" in note for note in notes), notes


def test_judgements_of_other_queries_cost_nothing(
    llmrank: Command, served: list[object], server: Server, tmp_path: Path
) -> None:
    (tmp_path / "qrels").write_text("other 0 d1 1\n")
    done = llmrank("expand", *served, "--qrels", "qrels", "--out", "a")
    assert (done.code, asked(server)) == (3, 0)
    assert "none of the queries is judged" in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["qrels"]


def test_nothing_of_an_earlier_run_stays(
    llmrank: Command, served: list[object], collection: Path, tmp_path: Path
) -> None:
    def files() -> set[str]:
        return {path.name for path in (tmp_path / "a").iterdir() if path.suffix != ".sqlite"}

    common = {"expansions.jsonl", "manifest.json", "summary.json"}
    qrels = ["--qrels", collection / "qrels" / "test.tsv"]
    assert llmrank("expand", *served, *qrels, "--out", "a").code == 0
    assert files() >= common | {"run.trec", "plain.trec", "effects.jsonl"}
    assert llmrank("expand", *served, "--out", "a").code == 0
    assert files() == common | {"run.trec"}
    assert llmrank("expand", *served[:2], *served[4:], "--out", "a").code == 0
    assert files() == common


def test_feedback_needs_no_model_and_tells_what_it_added(
    llmrank: Command, collection: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    done = llmrank(
        *("expand", "--queries", collection, "--corpus", collection, "--method", "rm3"),
        *("--model", "openai:gpt-4.1-mini", "--limit", 4),
        *("--qrels", collection / "qrels" / "test.tsv", "--out", "a"),
    )
    assert done.code == 0, done.err
    analyze = analyzer_named("english")
    for row in trec.read_jsonl(tmp_path / "a" / "effects.jsonl"):
        assert row["terms"]
        assert not {*analyze(str(row["text"]))} & {*row["terms"]}  # type: ignore[misc]
    for record in _records(tmp_path / "a"):
        assert {*analyze(str(record["text"]))} <= {*record["terms"]}  # type: ignore[misc]
