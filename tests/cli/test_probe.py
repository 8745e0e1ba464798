from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmrank import trec
from tests.cli.conftest import Command
from tests.servers import MODEL, SPEAKERS, Server, refuses, speak


def test_a_probe_is_a_table_with_real_probabilities(llmrank: Command, server: Server) -> None:
    url = speak(server, SPEAKERS["vllm"])
    done = llmrank("probe", "--base-url", url, "--model", MODEL)
    assert done.code == 0
    rows = {line[:21].strip(): line[21:].strip() for line in done.out.splitlines()}
    assert (rows["server"], rows["version"], rows["context"]) == ("vllm", "0.32.0", "4096")
    assert rows["token limit"] == "yes (max_tokens)"
    assert rows["sample"].startswith("P(Yes) = 0.6911, P(No) = 0.1663; together 0.857")
    assert rows["pointwise labels"] == rows["listwise labels"] == "chat, exact token ids"
    assert rows["embeddings"] == "no (HTTP 404: Not Found)"
    found = json.loads(llmrank("probe", "--base-url", url, "--json").out)
    assert found["likelihood"] == "echo"
    assert found["label_ids"]["works"]


def test_what_a_server_does_not_tell(llmrank: Command, server: Server) -> None:
    done = llmrank("probe", "--base-url", speak(server, SPEAKERS["unknown"]))
    assert done.code == 0
    assert "not told" in done.out


def test_nobody_to_probe(llmrank: Command) -> None:
    done = llmrank("probe", "--base-url", "http://127.0.0.1:9/v1", "--model", "m")
    assert done.code == 4
    assert "Traceback" not in done.err


def _run(folder: Path) -> list[object]:
    texts = [{"_id": f"d{i}", "text": f"passage {i}"} for i in range(4)]
    trec.write_jsonl(folder / "corpus.jsonl", texts)
    trec.write_jsonl(folder / "queries.jsonl", [{"_id": "q", "text": "what"}])
    trec.write_run(folder / "first.trec", [("q", [(f"d{i}", 4.0 - i) for i in range(4)])], tag="x")
    data = ["--run", folder / "first.trec", "--corpus", folder, "--queries", folder]
    return ["rerank", *data, "--method", "yesno", "--model", f"openai:{MODEL}"]


@pytest.mark.parametrize("name", SPEAKERS)
def test_a_run_probes_once_and_later_ones_know(
    llmrank: Command, server: Server, tmp_path: Path, name: str
) -> None:
    url = speak(server, SPEAKERS[name])
    url += "?api-version=2024-10-21" if name == "azure" else ""
    command = [*_run(tmp_path), "--base-url", url]
    done = llmrank(*command, "--probe", "--out", tmp_path / "runs/a")
    assert done.code == 0, done.err
    assert (tmp_path / "runs/a/probe.json").is_file()
    manifest = json.loads((tmp_path / "runs/a/manifest.json").read_text())
    counted = "the tokenizer of" in manifest["tokens"]
    assert counted is (name in ("vllm", "sglang", "llama.cpp"))
    server.forget()
    speak(server, SPEAKERS[name])
    again = llmrank(*command, "--out", tmp_path / "runs/b")
    assert again.code == 0
    assert "4 from the journal" in again.err
    assert not [r for r in server.received if r.path.endswith("/completions")]
    if name == "vllm":
        llmrank(*command, "--passage-words", 1, "--out", tmp_path / "runs/c")
        asked = [r.body for r in server.received if r.path.endswith("/chat/completions")]
        assert all("logprob_token_ids" in body for body in asked if body)


def test_a_named_dialect_goes_before_what_was_found(
    llmrank: Command, server: Server, tmp_path: Path
) -> None:
    url = speak(server, SPEAKERS["unknown"])
    command = [*_run(tmp_path), "--base-url", url, "--out", tmp_path / "run"]
    assert llmrank(*command, "--probe").code == 0
    speak(server, SPEAKERS["vllm"])
    command[command.index(f"openai:{MODEL}")] = f"openai:{MODEL},dialect=vllm"
    assert llmrank(*command, "--passage-words", 1).code == 0
    asked = [r.body for r in server.received if r.path.endswith("/chat/completions")]
    assert all("logprob_token_ids" in body for body in asked if body)


def test_the_first_reason_of_a_failure_is_told(
    llmrank: Command, server: Server, tmp_path: Path
) -> None:
    server.script("/chat/completions", refuses(400, "frobnicator missing"))
    done = llmrank(*_run(tmp_path), "--base-url", server.url, "--out", tmp_path / "run")
    assert done.code == 5
    assert done.err.count("frobnicator missing") == 2
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert "frobnicator missing" in summary["problems"]["failed"]


def test_prompts_that_cannot_fit_are_counted_before_anything_is_sent(
    llmrank: Command, tmp_path: Path
) -> None:
    command = _run(tmp_path)
    command[0] = "estimate"
    command[-1] = "openai:m,context=20"
    found = json.loads(llmrank(*command, "--base-url", "http://127.0.0.1:9/v1", "--json").out)
    assert (found["calls"], found["too_long"]) == (0, 4)
