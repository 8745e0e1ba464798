from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from llmrank import prompts, trec
from tests import servers
from tests.cli.conftest import Command
from tests.judge import asked
from tests.servers import Body, Server

TEXTS = {
    "bread": "yeast makes bread dough rise",
    "empty": "",
    "tides": "the moon pulls the tides",
    "soil": "worms turn the soil over",
    "bees": "bees carry pollen about",
}
QUERIES = {
    "bread": "why does dough rise",
    "tides": "worms turn soil",  # finds another document
    "soil": "",  # nothing was written
    "bees": "bees",  # too short
}


async def _write(_request: web.Request, body: Body) -> web.StreamResponse:
    """A query for the last document of the prompt."""
    shown = body["prompt"].rsplit("Document: ", 1)[-1]
    (name,) = [name for name, text in TEXTS.items() if text and text in shown]
    return web.json_response(servers.completion(f" {QUERIES[name]}"))


@pytest.fixture
def served(server: Server, tmp_path: Path) -> list[object]:
    server.script("/completions", _write)
    trec.write_jsonl(tmp_path / "docs", [{"_id": i, "text": t} for i, t in TEXTS.items()])
    model = ["--model", "openai:m", "--base-url", server.url]
    return ["--corpus", "docs", "--documents", 9, *model, "--max-failures", 1]


def _records(folder: Path) -> dict[str, dict[str, Any]]:
    return {str(r["_id"]): r for r in trec.read_jsonl(folder / "examples.jsonl")}


def test_every_example_says_where_it_came_from(
    llmrank: Command, served: list[object], server: Server, tmp_path: Path
) -> None:
    done = llmrank("generate", *served, "--per-document", 2, "--out", "a")
    assert (done.code, done.out) == (0, "")
    assert asked(server) == 8
    records = _records(tmp_path / "a")
    seeds = {record["provenance"]["params"]["seed"] for record in records.values()}
    assert seeds == {body["seed"] for body in server.bodies("/completions")}
    # The empty document is not asked about, and a failed query does not shift the ids.
    names = [name for name, text in TEXTS.items() if text]
    assert list(records) == [f"{name}#{i}" for name in names for i in range(2)]
    template = prompts.load("query_generation")
    for name, record in records.items():
        document, _, sample = name.partition("#")
        provenance = record["provenance"]
        assert (record["document"], provenance["sample"]) == (document, int(sample))
        assert record["query"] == QUERIES[document]
        assert provenance["model"] == "served"
        assert provenance["prompt"] == {"name": template.name, "sha256": template.sha256}
        sent = {"max_tokens", "temperature", "top_p", "stop", "seed", "thinking"}
        assert provenance["params"].keys() == sent
        assert provenance["params"]["temperature"] == template.params.temperature
        assert (provenance["prompt_tokens"], provenance["completion_tokens"]) == (30, 2)
        assert provenance["journal_key"]
        assert provenance["status"] == ("malformed" if document == "soil" else "ok")
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert manifest["generation"]["round_trip_k"] == 1
    assert manifest["prompts"] == {"query_generation": template.sha256}
    assert manifest["data"]["corpus"]["name"] == "docs"


def test_verdicts(llmrank: Command, served: list[object], tmp_path: Path) -> None:
    assert llmrank("generate", *served, "--out", "a").code == 0
    records = _records(tmp_path / "a")
    verdicts = {
        name: {v["filter"]: (v["passed"], v["value"], v["bound"]) for v in record["verdicts"]}
        for name, record in records.items()
    }
    assert verdicts["bread#0"]["round_trip"] == (True, 1, 1)
    assert verdicts["tides#0"]["length"] == (True, 3, 3)
    assert verdicts["tides#0"]["round_trip"] == (False, None, 1)
    assert verdicts["soil#0"] == {}
    assert verdicts["bees#0"]["length"] == (False, 1, 3)
    assert "round_trip" not in verdicts["bees#0"]
    assert {name: record["kept"] for name, record in records.items()} == {
        "bread#0": True,
        "tides#0": False,
        "soil#0": False,
        "bees#0": False,
    }


def test_the_kept_ones_in_beir_layout(
    llmrank: Command, served: list[object], tmp_path: Path
) -> None:
    assert llmrank("generate", *served, "--out", "a").code == 0
    queries = list(trec.read_queries(tmp_path / "a"))
    assert [(query.id, query.text) for query in queries] == [("bread#0", "why does dough rise")]
    qrels = trec.read_qrels(tmp_path / "a" / "qrels" / "train.tsv")
    assert qrels == {"bread#0": {"bread": 1}}
    funnel = json.loads((tmp_path / "a" / "summary.json").read_text())["funnel"]
    assert (funnel["asked"], funnel["written"]) == (4, 3)
    assert (funnel["length"], funnel["round_trip"], funnel["kept"]) == (2, 1, 1)


def test_examples_and_seed(
    llmrank: Command, served: list[object], server: Server, tmp_path: Path
) -> None:
    trec.write_jsonl(tmp_path / "shots", [{"document": "A shown text.", "query": "shown query"}])
    drawn = []
    for seed in (1, 1, 2, 3, 4):
        given = ["--documents", 2, "--seed", seed, "--examples", "shots", "--out", f"a/{seed}"]
        assert llmrank("generate", *served, *given).code == 0
        drawn.append(
            sorted(record["document"] for record in _records(tmp_path / f"a/{seed}").values())
        )
    assert drawn[0] == drawn[1]
    assert len({tuple(ids) for ids in drawn}) > 1
    assert all("empty" not in ids and len(ids) == 2 for ids in drawn)
    assert all(
        "Query: shown query" in str(body["prompt"]) for body in server.bodies("/completions")
    )


def test_again_sends_nothing(
    llmrank: Command, served: list[object], server: Server, tmp_path: Path
) -> None:
    assert llmrank("generate", *served, "--out", "a").code == 0
    before = (tmp_path / "a" / "examples.jsonl").read_bytes()
    sent = asked(server)
    assert llmrank("generate", *served, "--out", "a").code == 0
    assert asked(server) == sent
    assert (tmp_path / "a" / "examples.jsonl").read_bytes() == before


def test_too_many_failures(llmrank: Command, served: list[object]) -> None:
    done = llmrank("generate", *served, "--max-failures", 0.2, "--out", "a")
    assert done.code == 5
    assert llmrank("generate", *served, "--max-failures", 0.25, "--out", "a").code == 0


def test_what_is_printed(llmrank: Command, served: list[object]) -> None:
    lines = llmrank("generate", *served).out.splitlines()
    assert [json.loads(line)["document"] for line in lines] == ["bread", "tides", "soil", "bees"]
    assert json.loads(llmrank("generate", *served, "--json").out)["funnel"]["kept"] == 1


@pytest.mark.parametrize(
    ("given", "code", "told"),
    [
        (["--corpus", "missing"], 3, "missing"),
        (["--examples", "missing"], 3, "missing"),
        (["--examples", "docs"], 3, "`document` or `query`"),
        (["--prompt", "query_generation=hyde"], 3, "hyde"),
        (["--model", "nosuch:x", "--base-url", ""], 3, "no kind of model"),
        (["--documents", "0"], 2, "--documents"),
        (["--per-document", "0"], 2, "--per-document"),
        (["--round-trip", "0"], 2, "--round-trip"),
    ],
)
def test_mistakes_leave_nothing_behind(
    llmrank: Command, served: list[object], tmp_path: Path, given: list[str], code: int, told: str
) -> None:
    before = set(tmp_path.iterdir())
    done = llmrank("generate", *served, *given, "--out", "a")
    assert (done.code, done.out) == (code, "")
    assert told in done.err
    assert set(tmp_path.iterdir()) == before


def test_a_users_own_files_are_not_overwritten(
    llmrank: Command, served: list[object], tmp_path: Path
) -> None:
    done = llmrank("generate", *served, "--out", ".")
    assert done.code == 3
    assert [path.name for path in tmp_path.iterdir()] == ["docs"]


def test_a_corpus_of_empty_texts(llmrank: Command, served: list[object], tmp_path: Path) -> None:
    trec.write_jsonl(tmp_path / "blank", [{"_id": "1", "text": " "}, {"_id": "2", "text": ""}])
    done = llmrank("generate", *served, "--corpus", "blank", "--out", "a")
    assert done.code == 3
    assert "no document with a text" in done.err
