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
    stages = {name: stage["asks"] for name, stage in summary["stages"].items()}
    assert stages == {"query2doc(n=2, repeat=5)": 6, "yesno@4": 12}
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


def test_the_manifest_says_how_the_model_was_asked(
    llmrank: Command, served: list[object], tmp_path: Path
) -> None:
    limits = ["--passage-words", 20, "--truncation", "tail", "--thinking", 50]
    assert llmrank("run", PIPELINE, *served, *limits, "--out", "a").code == 0
    assert llmrank("expand", *served, *limits, "--out", "b").code == 0
    for name in "ab":
        manifest = json.loads((tmp_path / name / "manifest.json").read_text())
        told = [manifest[limit] for limit in ("passage_words", "truncation", "thinking")]
        assert told == [20, "tail", 50]


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
        ("pipeline = 'bm25'\nlimit = true\n", "limit must be a text or a number, not True"),
        ("pipeline = 'bm25'\nout = ['a', 'b']\n", "out must be a text or a number"),
        ("pipeline = 'bm25'\nhedge = 1\n", "hedge must be true or false, not 1"),
        ("pipeline = 'bm25'\nas-json = true\n", "no option 'as-json'"),
        ("pipeline = 7\n", "no pipeline"),
        ("pipeline = 'bm25'\nlimit = 'three'\n", "p.toml: limit: "),
        ("pipeline = 'bm25'\nlimit = 1.5\n", "p.toml: limit: "),
        ("pipeline = 'bm25'\nlimit = 0\n", "p.toml: limit: "),
        ("pipeline = 'bm25'\nb = 2\n", "p.toml: b: "),
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


def test_a_wrong_option_beside_a_file_is_not_the_file_s(llmrank: Command, tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text("pipeline = 'bm25'\nlimit = 3\n")
    done = llmrank("run", "p.toml", "--corpus", "c", "--queries", "q", "--limit", "three")
    assert done.code == 2
    assert "--limit" in done.err
    assert "p.toml" not in done.err


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


def _file(path: Path, **options: object) -> None:
    lines = [f"{name.replace('_', '-')} = {json.dumps(value)}\n" for name, value in options.items()]
    path.write_text("".join(lines))


def _model(folder: Path) -> str:
    return str(json.loads((folder / "manifest.json").read_text())["model"])


def test_a_file_goes_before_the_environment(
    llmrank: Command,
    collection: Path,
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LLMRANK_MODEL", "openai:environment")
    monkeypatch.setenv("LLMRANK_BASE_URL", "http://127.0.0.1:9/v1")
    data = {"corpus": str(collection), "queries": str(collection), "limit": 1}
    _file(
        tmp_path / "p.toml",
        pipeline="bm25@2 >> yesno@2",
        model="openai:file",
        base_url=server.url,
        **data,
    )
    assert llmrank("run", "p.toml", "--out", "a").code == 0
    assert _model(tmp_path / "a").startswith("openai:file@")
    assert llmrank("run", "p.toml", "-m", "openai:given", "--out", "b").code == 0
    assert _model(tmp_path / "b").startswith("openai:given@")
    _file(tmp_path / "q.toml", pipeline="bm25@2 >> yesno@2", base_url=server.url, **data)
    assert llmrank("run", "q.toml", "--out", "c").code == 0
    assert _model(tmp_path / "c").startswith("openai:environment@")


def test_options_in_a_file_are_as_on_the_command_line(
    llmrank: Command, collection: Path, server: Server, tmp_path: Path
) -> None:
    options: dict[str, object] = {
        "pipeline": "bm25@2 >> query2doc >> yesno@2",
        "corpus": str(collection),
        "queries": str(collection),
        "model": "openai:m",
        "base_url": server.url,
        "limit": 1,
        "probe": False,
        "max_failures": 0,
    }
    _file(tmp_path / "p.toml", **options, json=True, prompt="grade=yesno", out="a")
    done = llmrank("run", "p.toml")
    assert done.code == 0, done.err
    assert json.loads(done.out)["queries"] == 1
    _file(tmp_path / "q.toml", **options, prompt=["query2doc=query2doc", "grade=yesno"])
    assert llmrank("run", "q.toml").code == 0
    _file(tmp_path / "r.toml", **options, prompt="grade=missing.toml")
    assert llmrank("run", "r.toml").code == 3
    assert llmrank("run", "r.toml", "--prompt", "grade=yesno").code == 0


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["dense >> rm3"], "rm3 is for a first stage of bm25, not for dense"),
        (["bm25 >> vector_prf"], "vector_prf is for a first stage of dense, not for bm25"),
        (["bm25 >> yesno@4", "--prompt", "grade=query2doc"], "query2doc"),
        (["bm25 >> yesno@4", "--prompt", "hyde=hyde"], "would not be used"),
        (["bm25 >> query2doc >> yesno@4", "--prompt", "hyde=hyde"], "would not be used"),
        (["bm25 >> rm3", "--prompt", "grade=yesno"], "what is asked is nothing in words"),
        (["dense@5", "--prompt", "grade=yesno"], "what is asked is nothing in words"),
        (["bm25 >> yesno@4", "--fusion", "minmax"], "is for hybrid"),
    ],
)
def test_mistakes_are_told_before_an_index_is_built(
    llmrank: Command,
    served: list[object],
    server: Server,
    tmp_path: Path,
    given: list[str],
    told: str,
) -> None:
    encoder = ["--encoder", "openai:e", "--encoder-url", server.url]
    done = llmrank("run", *given, *served, *encoder, "--index", "ix", "--out", "a")
    assert (done.code, asked(server)) == (3, 0)
    assert told in done.err
    assert not list(tmp_path.iterdir())


def test_the_reranker_s_prompt_beside_an_augmentation(
    llmrank: Command, served: list[object]
) -> None:
    done = llmrank("run", PIPELINE, *served, "--prompt", "grade=yesno", "--out", "a")
    assert done.code == 0, done.err


def test_an_index_of_another_encoder_is_refused(
    llmrank: Command, served: list[object], server: Server, tmp_path: Path
) -> None:
    given = ["run", "dense@5", *served, "--encoder-url", server.url, "--index", "ix"]
    assert llmrank(*given, "--encoder", "openai:A", "--out", "a").code == 0
    before = asked(server)
    done = llmrank(*given, "--encoder", "openai:B", "--out", "b")
    assert (done.code, asked(server)) == (3, before)
    assert "openai:A@" in done.err
    assert not (tmp_path / "b").exists()


def test_nothing_of_an_earlier_run_stays(
    llmrank: Command, served: list[object], tmp_path: Path
) -> None:
    assert llmrank("run", PIPELINE, *served, "--out", "a").code == 0
    assert (tmp_path / "a" / "expansions.jsonl").exists()
    assert llmrank("run", "bm25@8", *served, "--out", "a").code == 0
    assert not (tmp_path / "a" / "expansions.jsonl").exists()


def test_what_asks_nothing_needs_no_model(
    llmrank: Command, collection: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    data = ["--queries", collection, "--corpus", collection, "--limit", 2]
    done = llmrank("run", "bm25@8 >> rm3", *data, "--model", "openai:gpt-4.1-mini", "--out", "a")
    assert done.code == 0, done.err
    assert "by no model" in done.err


def test_how_is_searched_is_said_as_by_search(
    llmrank: Command, served: list[object], server: Server, tmp_path: Path
) -> None:
    """One index and one set of options serve search, expand and run."""
    encoder = ["--encoder", "openai:e", "--encoder-url", server.url, "--index", "ix"]
    how = ["--bm25", "atire", "--k1", 1.5, "--fusion", "minmax", "--dense-weight", 0.2]
    data = [*served[:6], *encoder, *how]
    told = llmrank("search", *data, "--first-stage", "hybrid", "-k", 8, "--out", "s.trec")
    assert told.code == 0, told.err
    done = llmrank("run", "hybrid@8", *served, *encoder, *how, "--out", "a")
    assert done.code == 0, done.err
    searched, run = (dict(trec.read_run(tmp_path / name)) for name in ("s.trec", "a/first.trec"))
    assert searched == run
    manifest, summary = (
        json.loads((tmp_path / "a" / name).read_text())
        for name in ("manifest.json", "summary.json")
    )
    assert manifest["search"] == {
        "first_stage": "hybrid",
        "analyzer": "english",
        "variant": "atire",
        "k1": 1.5,
        "b": 0.4,
        "delta": None,
        "fusion": "minmax",
        "dense_weight": 0.2,
    }
    assert summary["embedding_requests"] == 3
    other = llmrank("run", "hybrid@8", *served, *encoder, "--k1", 0.9, "--out", "b")
    assert (other.code, "the k1 1.5, not 0.9" in other.err) == (3, True)
    given = [*served, *encoder, *how, "--method", "subqueries", "--first-stage", "hybrid"]
    assert llmrank("expand", *given, "--out", "e").code == 0
    assert json.loads((tmp_path / "e/manifest.json").read_text())["search"] == manifest["search"]


def test_a_file_says_how_is_searched(
    llmrank: Command, collection: Path, server: Server, tmp_path: Path
) -> None:
    options = {"corpus": str(collection), "queries": str(collection), "limit": 2, "b": 0.75}
    _file(tmp_path / "p.toml", pipeline="bm25@5", bm25="bm25+", delta=0.25, **options)
    assert llmrank("run", "p.toml", "--out", "a").code == 0
    found = json.loads((tmp_path / "a/manifest.json").read_text())["search"]
    assert [found[name] for name in ("variant", "b", "delta")] == ["bm25+", 0.75, 0.25]


@pytest.mark.parametrize("command", [["run", "bm25 >> yesno@2"], ["expand"]])
def test_a_blank_query_or_a_missing_key_leaves_no_folder(
    llmrank: Command,
    served: list[object],
    collection: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: list[str],
) -> None:
    (tmp_path / "queries").write_text('{"_id": "q", "text": "tides"}\n{"_id": "r", "text": " "}\n')
    done = llmrank(*command, *served, "--queries", "queries", "--out", "a")
    assert (done.code, done.out) == (3, "")
    assert "'r' has no text" in done.err
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    data = ["--corpus", collection, "--queries", collection, "--limit", 1, "--out", "a"]
    done = llmrank(*command, *data, "--model", "openai:gpt-4.1-mini", "--index", "ix")
    assert (done.code, "OPENAI_API_KEY" in done.err) == (4, True)
    assert [path.name for path in tmp_path.iterdir()] == ["queries"]


def test_a_missing_key_of_the_encoder_is_found_before_anything_is_built(
    llmrank: Command, collection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    data = ["--corpus", collection, "--queries", collection, "--encoder", "openai:embed"]
    done = llmrank("run", "hybrid@5", *data, "--index", "ix", "--out", "a")
    assert (done.code, "OPENAI_API_KEY" in done.err) == (4, True)
    assert not list(tmp_path.iterdir())
