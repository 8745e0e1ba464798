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
RECIPE = "random@9 >> write >> length >> round_trip(k=1)"
WRITE = "write(kinds=search, n=1, level=passage, words=256, seed=0)"


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
    return ["--corpus", "docs", *model, "--max-failures", 1]


def _records(folder: Path) -> dict[str, dict[str, Any]]:
    return {str(r["_id"]): r for r in trec.read_jsonl(folder / "examples.jsonl")}


def test_every_example_says_where_it_came_from(
    llmrank: Command, served: list[object], server: Server, tmp_path: Path
) -> None:
    recipe = "all >> write(n=2) >> length"
    done = llmrank("generate", recipe, *served, "--out", "a")
    assert (done.code, done.out) == (0, "")
    assert asked(server) == 8
    records = _records(tmp_path / "a")
    seeds = {record["calls"][0]["params"]["seed"] for record in records.values()}
    assert seeds == {body["seed"] for body in server.bodies("/completions")}
    # The empty document is not asked about, and a failed query does not shift the ids.
    names = [name for name, text in TEXTS.items() if text]
    assert list(records) == [f"{name}#{i}" for name in names for i in range(2)]
    template = prompts.load("query_search")
    for name, record in records.items():
        document = name.partition("#")[0]
        (call,) = record["calls"]
        span = {"document": document, "start": 0, "end": len(TEXTS[document])}
        assert (record["sources"], record["query"]) == ([span], QUERIES[document])
        assert (call["model"], call["calls"]) == ("served", 1)
        assert (call["prompt"], call["sha256"]) == (template.name, template.sha256)
        assert call["params"].keys() == {
            *("max_tokens", "temperature", "top_p", "stop", "seed", "thinking")
        }
        assert (call["prompt_tokens"], call["completion_tokens"]) == (30, 2)
        assert call["statuses"] == {"malformed" if document == "soil" else "ok": 1}
        assert len(call["keys"]) == 1
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert manifest["recipe"].startswith("all(characters=1) >> write(")
    assert manifest["prompts"] == {"query_search": template.sha256}
    assert manifest["data"]["corpus"]["name"] == "docs"


def test_verdicts_and_funnel(llmrank: Command, served: list[object], tmp_path: Path) -> None:
    done = llmrank("generate", RECIPE, *served, "--out", "a")
    assert done.code == 0
    verdicts = {
        name: [(v["stage"].partition("(")[0], v["passed"], v["value"]) for v in r["verdicts"]]
        for name, r in _records(tmp_path / "a").items()
    }
    assert verdicts == {
        "bread#0": [("write", True, None), ("length", True, 4), ("round_trip", True, 1)],
        "tides#0": [("write", True, None), ("length", True, 3), ("round_trip", False, None)],
        "soil#0": [("write", False, None)],
        "bees#0": [("write", True, None), ("length", False, 1)],
    }
    funnel = json.loads((tmp_path / "a" / "summary.json").read_text())["funnel"]
    assert [(one["came"], one["kept"]) for one in funnel] == [(4, 4), (4, 3), (3, 2), (2, 1)]
    assert f"3 of 4 {WRITE}" in done.err


def test_the_kept_ones_in_beir_layout(
    llmrank: Command, served: list[object], tmp_path: Path
) -> None:
    assert llmrank("generate", RECIPE, *served, "--out", "a").code == 0
    queries = list(trec.read_queries(tmp_path / "a"))
    assert [(query.id, query.text) for query in queries] == [("bread#0", "why does dough rise")]
    qrels = trec.read_qrels(tmp_path / "a" / "qrels" / "train.tsv")
    assert qrels == {"bread#0": {"bread": 1}}
    assert not list((tmp_path / "a").glob(".*"))


def test_splits_have_files_of_their_own(
    llmrank: Command, served: list[object], tmp_path: Path
) -> None:
    recipe = "all >> write >> split(dev=0.5, seed=1)"
    assert llmrank("generate", recipe, *served, "--out", "a").code == 0
    found = {path.stem: trec.read_qrels(path) for path in (tmp_path / "a/qrels").iterdir()}
    records = [record for record in _records(tmp_path / "a").values() if record["kept"]]
    for split, qrels in found.items():
        assert set(qrels) == {record["_id"] for record in records if record["split"] == split}
    assert sum(map(len, found.values())) == len(records) == 3


def test_splits_of_an_earlier_recipe_go(
    llmrank: Command, served: list[object], tmp_path: Path
) -> None:
    recipe = "all >> write >> split(dev=0.5, seed=1)"
    assert llmrank("generate", recipe, *served, "--out", "a").code == 0
    assert (tmp_path / "a/qrels/dev.tsv").exists()
    assert llmrank("generate", "all >> write", *served, "--out", "a").code == 0
    assert [path.name for path in (tmp_path / "a/qrels").iterdir()] == ["train.tsv"]


def test_an_id_that_judgements_cannot_hold(
    llmrank: Command, served: list[object], server: Server, tmp_path: Path
) -> None:
    trec.write_jsonl(tmp_path / "docs", [{"_id": "a\tb", "text": TEXTS["bread"]}])
    done = llmrank("generate", "all >> write", *served, "--out", "a")
    assert done.code == 3
    assert "holds a tab or a line break" in done.err
    assert not asked(server)


def test_a_recipe_in_a_file(llmrank: Command, served: list[object], tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(f'recipe = "{RECIPE}"\nout = "a"\ncorpus = "nowhere"\n')
    assert llmrank("generate", "r.toml", *served).code == 0
    assert list(_records(tmp_path / "a")) == ["bread#0", "tides#0", "soil#0", "bees#0"]


def test_examples_and_seed(
    llmrank: Command, served: list[object], server: Server, tmp_path: Path
) -> None:
    trec.write_jsonl(tmp_path / "shots", [{"document": "A shown text.", "query": "shown query"}])
    drawn = []
    for number, seed in enumerate((1, 1, 2, 3, 4)):
        recipe = f"random(seed={seed})@2 >> write"
        given = ["--examples", "shots", "--out", f"a/{number}"]
        assert llmrank("generate", recipe, *served, *given).code == 0
        drawn.append(sorted(_records(tmp_path / f"a/{number}")))
    assert drawn[0] == drawn[1]
    assert len({tuple(ids) for ids in drawn}) > 1
    assert all(len(ids) == 2 for ids in drawn)
    assert all("Search: shown query" in body["prompt"] for body in server.bodies("/completions"))


def test_what_was_stopped_goes_on_and_asks_nothing_twice(
    llmrank: Command, served: list[object], server: Server, tmp_path: Path
) -> None:
    assert llmrank("generate", RECIPE, *served, "--out", "whole/a").code == 0
    total = asked(server)
    stopped = llmrank("generate", RECIPE, *served, "--out", "b/a", "--max-calls", 2)
    assert stopped.code == 6
    assert llmrank("generate", RECIPE, *served, "--out", "b/a").code == 0
    assert asked(server) == 2 * total
    for name in ("examples.jsonl", "queries.jsonl", "qrels/train.tsv"):
        assert (tmp_path / "b/a" / name).read_bytes() == (tmp_path / "whole/a" / name).read_bytes()
    assert llmrank("generate", RECIPE, *served, "--out", "b/a").code == 0
    assert asked(server) == 2 * total


def test_held_out_data_is_guarded(llmrank: Command, served: list[object], tmp_path: Path) -> None:
    trec.write_jsonl(tmp_path / "test", [{"_id": "t", "text": "Why does DOUGH rise?"}])
    (tmp_path / "qrels").write_text("t 0 tides 1\n")
    given = ["--held-out", "test", "--held-out-qrels", "qrels", "--out", "a"]
    assert llmrank("generate", "all >> write >> guard", *served, *given).code == 0
    records = _records(tmp_path / "a")
    assert [name for name, record in records.items() if record["kept"]] == ["bees#0"]
    assert records["bread#0"]["verdicts"][-1]["note"] == "as t (normalised)"
    assert "tides is relevant" in records["tides#0"]["verdicts"][-1]["note"]
    origins = json.loads((tmp_path / "a" / "manifest.json").read_text())["data"]
    assert {name: origin["name"] for name, origin in origins.items()} == {
        "corpus": "docs",
        "queries": "test",
        "qrels": "qrels",
    }


def test_test_data_without_a_guard_is_refused(
    llmrank: Command, served: list[object], server: Server, tmp_path: Path
) -> None:
    trec.write_jsonl(tmp_path / "test", [{"_id": "t", "text": "Why does DOUGH rise?"}])
    done = llmrank("generate", "all >> write", *served, "--held-out", "test", "--out", "a")
    assert done.code == 3
    assert "add >> guard" in done.err
    assert not asked(server)


def test_too_many_failures(llmrank: Command, served: list[object]) -> None:
    done = llmrank("generate", RECIPE, *served, "--max-failures", 0.2, "--out", "a")
    assert done.code == 5
    assert llmrank("generate", RECIPE, *served, "--max-failures", 0.25, "--out", "a").code == 0


def test_what_is_printed(llmrank: Command, served: list[object]) -> None:
    lines = llmrank("generate", RECIPE, *served).out.splitlines()
    assert [json.loads(line)["_id"] for line in lines] == ["bread#0", "tides#0", "soil#0", "bees#0"]
    printed = json.loads(llmrank("generate", RECIPE, *served, "--json").out)
    assert printed["funnel"][-1]["kept"] == 1


@pytest.mark.parametrize(
    ("given", "code", "told"),
    [
        (["--corpus", "missing"], 3, "missing"),
        (["--examples", "missing"], 3, "missing"),
        (["--examples", "docs"], 3, "`document` or `query`"),
        (["--prompt", "query_search=hyde"], 3, "hyde"),
        (["--model", "nosuch:x", "--base-url", ""], 3, "no kind of model"),
        (["--held-out-qrels", "docs"], 3, "--held-out"),
        (["--held-out", "missing"], 3, "missing"),
        (["--held-out", "docs", "--held-out-qrels", "elsewhere"], 3, "is in the corpus"),
    ],
)
def test_mistakes_leave_nothing_behind(
    llmrank: Command, served: list[object], tmp_path: Path, given: list[str], code: int, told: str
) -> None:
    (tmp_path / "elsewhere").write_text("q 0 a-document-of-another-corpus 1\n")
    before = set(tmp_path.iterdir())
    done = llmrank("generate", RECIPE, *served, *given, "--out", "a")
    assert (done.code, done.out) == (code, "")
    assert told in done.err
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("recipe", "told"),
    [
        ("write", "begins with a choice"),
        ("all >> write >> poetry", "no step 'poetry'"),
        ("all >> write >> guard", "--held-out"),
        ("all >> write(kinds=claim+claim)", "twice"),
        ("nowhere.toml", "cannot be read"),
    ],
)
def test_so_do_mistakes_in_recipes(
    llmrank: Command, served: list[object], tmp_path: Path, recipe: str, told: str
) -> None:
    done = llmrank("generate", recipe, *served, "--out", "a")
    assert (done.code, done.out) == (3, "")
    assert told in done.err
    assert not (tmp_path / "a").exists()


def test_a_users_own_files_are_not_overwritten(
    llmrank: Command, served: list[object], tmp_path: Path
) -> None:
    done = llmrank("generate", RECIPE, *served, "--out", ".")
    assert done.code == 3
    assert [path.name for path in tmp_path.iterdir()] == ["docs"]


def test_a_corpus_of_empty_texts(llmrank: Command, served: list[object], tmp_path: Path) -> None:
    trec.write_jsonl(tmp_path / "blank", [{"_id": "1", "text": " "}, {"_id": "2", "text": ""}])
    done = llmrank("generate", "all >> write", *served, "--corpus", "blank", "--out", "a")
    assert done.code == 3
    assert "no document was chosen" in done.err


def test_what_a_killed_run_left_between_two_steps_goes(
    llmrank: Command, served: list[object], tmp_path: Path
) -> None:
    assert llmrank("generate", RECIPE, *served, "--out", "a").code == 0
    (tmp_path / "a" / ".steps").mkdir()
    (tmp_path / "a" / ".steps" / "7.jsonl").write_text("half a li")
    assert llmrank("generate", RECIPE, *served, "--out", "a").code == 0
    assert not (tmp_path / "a" / ".steps").exists()


def test_examples_are_chosen_by_the_model(
    llmrank: Command, served: list[object], tmp_path: Path
) -> None:
    rows = [{"document": f"text {i}", "query": f"query {i}"} for i in range(8)]
    trec.write_jsonl(tmp_path / "shots", rows)
    (tmp_path / "qrels").write_text("q 0 bread 1\n")
    given = ["--examples", "shots", "--choose", 2, "--model", "oracle:qrels", "--out", "a"]
    assert llmrank("generate", "all >> write", *served, *given).code == 0
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert len(manifest["shown"]) == 2
    assert all(shot in rows for shot in manifest["shown"])
    assert manifest["chosen"]["best"] >= manifest["chosen"]["worst"]
    few = llmrank("generate", "all >> write", *served, *given, "--choose", 5, "--out", "b")
    assert few.code == 3
    assert "cannot be chosen" in few.err


def test_examples_that_nobody_shows_are_refused(
    llmrank: Command, served: list[object], tmp_path: Path
) -> None:
    trec.write_jsonl(tmp_path / "shots", [{"document": "A shown text.", "query": "shown query"}])
    done = llmrank("generate", "all >> across", *served, "--examples", "shots", "--out", "a")
    assert (done.code, done.out) == (3, "")
    assert "no step shows the examples" in done.err
    assert not (tmp_path / "a").exists()
