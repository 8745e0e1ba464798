from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmrank import prompts, trec
from llmrank.api.runs import fingerprint
from llmrank.request import Reply
from llmrank.store import JOURNAL, Journal
from tests.cli.conftest import Command

TEXT = "Yeast feeds on sugars. The gas makes dough rise. It is then baked."


def _call(stage: str, prompt: str, sha256: str, keys: list[str]) -> dict[str, Any]:
    return {
        "stage": stage,
        "prompt": prompt,
        "sha256": sha256,
        "model": "served",
        "params": {"max_tokens": 48, "temperature": 0.7, "seed": None},
        "calls": len(keys),
        "statuses": {"ok": len(keys)},
        "prompt_tokens": 1200,
        "completion_tokens": 9,
        "keys": keys,
    }


def _example() -> dict[str, Any]:
    written = prompts.load("query_question").sha256
    return {
        "_id": "bread#0",
        "query": "why does dough rise",
        "kind": "question",
        "kept": True,
        "split": "train",
        "sources": [{"document": "bread", "start": 6, "end": 28}],
        "passages": [
            {"document": "bread", "label": 1, "origin": "source", "scores": {"teacher": 0.93}},
            {"document": "tides", "label": None, "origin": "bm25", "scores": {"bm25": 12.125}},
            {
                "document": "bread#0-1",
                "label": 0,
                "origin": "written",
                "scores": {},
                "text": "Bread is [bold]old[/bold] " + "and older still " * 9,
            },
        ],
        "verdicts": [
            {"stage": "round_trip(k=20)", "passed": True, "value": 3, "bound": 20, "note": ""},
            {"stage": "unique", "passed": True, "value": 0.25, "bound": 0.9, "note": "tides#0"},
        ],
        "calls": [
            _call("write(types=question)", "query_question", written, ["k" * 64]),
            _call("relabel(yesno@2)", "yesno", "0" * 64, ["l" * 64, "missing"]),
            _call("unique", "", "", ["v" * 64, ""]),
        ],
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run with a journal, and its corpus beside it."""
    run = tmp_path / "run"
    corpus = [
        {"_id": "bread", "title": "Bread", "text": TEXT},
        {"_id": "tides", "text": "The moon pulls the tides."},
    ]
    trec.write_jsonl(tmp_path / "docs.jsonl", corpus)
    journal = Journal(run / JOURNAL)
    replies = {
        "k": Reply(text="why does dough rise\nbecause", reasoning="gas"),
        "l": Reply(label_logprobs={"yes": -0.25, "no": -1.5}, logprob=-7.5, tokens=4),
        "v": Reply(vectors=np.zeros((2, 3), dtype=np.float32)),
    }
    journal.put([(key * 64, {"ask": "write"}, reply) for key, reply in replies.items()])
    journal.close()
    dropped = {**_example(), "_id": "tides#0", "query": "", "kept": False, "split": ""}
    for name in ("passages", "verdicts", "calls"):
        dropped[name] = []
    trec.write_jsonl(run / "examples.jsonl", [_example(), dropped])
    data = {"corpus": fingerprint(tmp_path / "docs.jsonl")}
    (run / "manifest.json").write_text(json.dumps({"data": data}))
    return run


def test_the_whole_story(llmrank: Command, folder: Path) -> None:
    done = llmrank("show", "bread#0", "--run", "run")
    assert (done.code, done.err) == (0, "")
    lines = [line.strip() for line in done.out.splitlines()]
    assert lines[:2] == ["bread#0: kept, in train, kind question", "why does dough rise"]
    # Characters of title and text, as the writer was shown them.
    at = lines.index("bread, characters 6 to 28")
    assert lines[at + 1] == "Yeast feeds on sugars."
    assert "max_tokens=48, temperature=0.7" in lines
    assert "1 of query_question to served (1 ok), 1,200 prompt and 9 completion tokens" in lines
    template = prompts.load("query_question")
    texts = [template.text, *(turn.text for turn in template.messages)]
    shown = [line.strip() for text in texts for line in text.strip().splitlines()]
    assert len(shown) > 3
    assert set(shown) <= set(lines)
    at = lines.index("reply kkkkkkkkkkkk: (thought: gas)")
    assert lines[at + 1 : at + 3] == ["why does dough rise", "because"]
    assert f"template yesno, SHA-256 {'0' * 64}: not one of this version of llmrank" in lines
    at = lines.index("reply llllllllllll: 'yes' -0.2500, 'no' -1.5000")
    assert lines[at + 1] == "log-probability -7.5000 over 4 tokens"
    assert "reply vvvvvvvvvvvv: vectors 2 x 3" in lines
    assert "reply missing: not in the journal" in lines
    assert "reply : not in the journal" in lines
    assert "2 of embeddings to served (2 ok), 1,200 prompt and 9 completion tokens" in lines
    assert done.out.count("template") == 2
    cells = [line.split() for line in lines]
    assert ["round_trip(k=20)", "passed", "3", "20"] in cells
    assert ["unique", "passed", "0.25", "0.9", "tides#0"] in cells
    assert ["tides", "bm25", "undecided", "12.125", "The", "moon"] in [row[:6] for row in cells]
    source = next(row for row in cells if row[:2] == ["bread", "source"])
    assert source[2:6] == ["1", "0.93", "Bread", "Yeast"]
    # Markup in a text is text, and a long one is cut.
    assert any("Bread is [bold]old[/bold]" in line and line.endswith("…") for line in lines)
    assert lines[-1] == "3,600 prompt and 27 completion tokens in all"


def test_cost_where_prices_are_known(llmrank: Command, folder: Path) -> None:
    prices = {"prompt": 1000, "completion": 10_000}
    (folder / "summary.json").write_text(json.dumps({"prices": prices}))
    done = llmrank("show", "bread#0", "--run", "run")
    assert done.out.endswith("completion tokens in all, 3.870000 in money\n")


def test_a_dropped_one_without_anything(llmrank: Command, folder: Path) -> None:
    done = llmrank("show", "tides#0", "--run", "run")
    assert done.code == 0
    assert done.out.startswith("tides#0: dropped, kind question\n  (no query was written)\n")
    assert "Verdicts" not in done.out
    assert "0 prompt and 0 completion tokens" in done.out


def test_the_record_as_json(llmrank: Command, folder: Path) -> None:
    odd = {**_example(), "_id": "odd", "query": "half \ud800 of it, größer"}
    with (folder / "examples.jsonl").open("a") as file:
        file.write(json.dumps(odd) + "\n")
    assert json.loads(llmrank("show", "bread#0", "--run", "run", "--json").out) == _example()
    done = llmrank("show", "odd", "--run", "run", "--json")
    assert json.loads(done.out) == odd
    assert "größer" in done.out


def test_an_id_that_is_not_there(llmrank: Command, folder: Path) -> None:
    done = llmrank("show", "bread#1", "--run", "run")
    assert (done.code, done.out) == (3, "")
    assert "no example 'bread#1' (the nearest: bread#0, tides#0)" in done.err
    (folder / "examples.jsonl").write_text("")
    assert "it is empty" in llmrank("show", "bread#1", "--run", "run").err


def test_a_folder_of_something_else(llmrank: Command, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    for run in ("other", "nowhere"):
        done = llmrank("show", "a", "--run", run)
        assert (done.code, done.out) == (3, "")
        assert "there is no examples.jsonl" in done.err
    assert list(tmp_path.iterdir()) == [tmp_path / "other"]
    assert not list((tmp_path / "other").iterdir())


def test_what_a_terminal_would_obey_is_shown_as_escapes(llmrank: Command, folder: Path) -> None:
    bad = "\x1b[2J\x1b]0;owned\x07\x9b31m\r\u202e\ud800[red]x[/red]"
    example = _example() | {"_id": "bad", "query": bad, "kind": bad, "split": bad}
    example["sources"][0]["document"] = bad
    example["passages"][0] |= {"document": bad, "origin": bad, "scores": {bad: 1.0}, "text": bad}
    example["verdicts"][0] |= {"stage": bad, "note": bad}
    example["calls"][0] |= {"stage": bad, "prompt": bad, "model": bad, "params": {bad: bad}}
    journal = Journal(folder / JOURNAL)
    journal.put([("bad", {}, Reply(text=bad, reasoning=bad, label_logprobs={bad: -1.0}))])
    journal.close()
    example["calls"][0]["keys"] = ["bad"]
    with (folder / "examples.jsonl").open("a") as file:
        file.write(json.dumps(example) + "\n")
    done = llmrank("show", "bad", "--run", "run")
    assert done.code == 0
    assert not set("\x1b\x07\x9b\r\u202e\ud800") & set(done.out + done.err)
    assert "\\x1b[2J\\x1b]0;owned\\x07\\x9b31m" in done.out
    assert "\\u202e\\ud800[red]x[/red]" in done.out


@pytest.mark.parametrize("told", ["[]", '{"data": []}', '{"data": {"corpus": "a"}}'])
def test_a_damaged_manifest(llmrank: Command, folder: Path, told: str) -> None:
    (folder / "manifest.json").write_text(told)
    done = llmrank("show", "bread#0", "--run", "run")
    assert done.code == 0
    assert "give --corpus" in done.err
    assert "why does dough rise" in done.out


@pytest.mark.parametrize("told", [{}, {"query": "q", "kept": True, "sources": 3}])
def test_a_damaged_example(llmrank: Command, folder: Path, told: dict[str, object]) -> None:
    trec.write_jsonl(folder / "examples.jsonl", [{"_id": "bread#0", **told}])
    done = llmrank("show", "bread#0", "--run", "run")
    assert done.code == 3
    assert "the record of 'bread#0' is damaged" in done.err


def test_without_corpus_or_journal(llmrank: Command, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "docs.jsonl").rename(tmp_path / "moved.jsonl")
    for path in folder.glob(f"{JOURNAL}*"):
        path.unlink()
    before = sorted(folder.iterdir())
    done = llmrank("show", "bread#0", "--run", "run")
    assert done.code == 0
    assert "give --corpus" in done.err
    assert "Yeast feeds on sugars." not in done.out.partition("Calls")[0]
    assert done.out.count("not in the journal") == 5
    assert sorted(folder.iterdir()) == before
    given = llmrank("show", "bread#0", "--run", "run", "--corpus", "moved.jsonl")
    assert given.err == ""
    assert "Yeast feeds on sugars." in given.out.partition("Calls")[0]


def test_a_corpus_that_changed(llmrank: Command, folder: Path, tmp_path: Path) -> None:
    trec.write_jsonl(tmp_path / "docs.jsonl", [{"_id": "bread", "text": "Another text by now."}])
    done = llmrank("show", "bread#0", "--run", "run")
    assert "not what it was" in done.err
    assert "Another" not in done.out
    done = llmrank("show", "bread#0", "--run", "run", "--corpus", "docs.jsonl")
    assert "spans may be wrong" in done.err
    assert "r text by now." in done.out
    missing = llmrank("show", "bread#0", "--run", "run", "--corpus", "nowhere.jsonl")
    assert missing.code == 3
    assert "nowhere.jsonl" in missing.err
