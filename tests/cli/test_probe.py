from __future__ import annotations

import json
import re
import time
from dataclasses import replace
from pathlib import Path

import pytest

from llmrank import trec
from llmrank.backends.probe import Probe
from tests.cli.conftest import Command
from tests.servers import (
    MODEL,
    SPEAKERS,
    TOP,
    Server,
    breaks_off,
    chat,
    completion,
    refuses,
    sends,
    sends_html,
    serve,
    speak,
    waits,
)

NOBODY = "http://127.0.0.1:9/v1"


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


def asked(server: Server) -> list[dict[str, object]]:
    """The bodies of what may cost something."""
    return [dict(r.body) for r in server.received if r.body and not r.path.endswith("/tokenize")]


def manifest(folder: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((folder / "manifest.json").read_text())
    return found


@pytest.mark.parametrize("name", ["vllm", "llama.cpp", "ollama", "unknown"])
def test_a_run_greets_a_server_and_pays_for_nothing_more(
    llmrank: Command, server: Server, tmp_path: Path, name: str
) -> None:
    url = speak(server, SPEAKERS[name])
    command = [*_run(tmp_path), "--base-url", url, "--out", tmp_path / "run"]
    done = llmrank(*command)
    assert done.code == 0, done.err
    bodies = asked(server)
    assert len(bodies) == 4
    assert all(("logprob_token_ids" in body) is (name == "vllm") for body in bodies)
    version = next((told.get("version") for told in SPEAKERS[name].routes.values()), "")
    known = {"url": url, "kind": name, "version": "b1" if name == "llama.cpp" else version}
    assert manifest(tmp_path / "run")["servers"] == [known]
    assert Probe.load(tmp_path / "run", url, MODEL) is None
    server.forget()
    again = llmrank(*command)
    assert (again.code, server.received) == (0, [])
    assert "4 from the journal" in again.err


def test_a_resumed_run_asks_a_silent_server_as_before(
    llmrank: Command, server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = speak(server, SPEAKERS["vllm"])
    command = [*_run(tmp_path), "--base-url", url, "--out", tmp_path / "run"]
    assert llmrank(*command).code == 0
    told = manifest(tmp_path / "run")["servers"]
    server.script("/models", refuses(503, "busy"))
    assert llmrank(*command, "--passage-words", 1).code == 0
    assert all("logprob_token_ids" in body for body in asked(server))
    assert manifest(tmp_path / "run")["servers"] == told
    assert not caplog.records
    # It is no probe.
    speak(server, SPEAKERS["vllm"])
    assert llmrank(*command, "--probe").code == 0
    assert Probe.load(tmp_path / "run", url, MODEL) is not None


def test_a_resumed_run_needs_no_server(llmrank: Command, tmp_path: Path) -> None:
    command = [*_run(tmp_path), "--out", tmp_path / "run"]
    with serve() as server:
        url = speak(server, SPEAKERS["vllm"])
        assert llmrank(*command, "--base-url", url, "--probe").code == 0
    started = time.perf_counter()
    again = llmrank(*command, "--base-url", url)
    assert (again.code, time.perf_counter() - started < 3) == (0, True), again.err
    assert "4 from the journal" in again.err


@pytest.mark.parametrize(
    "trouble", [refuses(401, "no"), refuses(403, "no"), refuses(500, "no"), sends_html(), None]
)
def test_what_side_routes_do_ends_no_run(
    llmrank: Command, server: Server, tmp_path: Path, trouble: object
) -> None:
    speak(server, SPEAKERS["unknown"])
    for path in ("/models", "//props", "//info", "//api/version", "//get_model_info"):
        server.script(path, breaks_off() if trouble is None else trouble)  # type: ignore[arg-type]
    done = llmrank(*_run(tmp_path), "--base-url", server.url, "--out", tmp_path / "run")
    assert done.code == 0, done.err


def test_a_wrong_key_is_told_by_the_runs_own_request(
    llmrank: Command, server: Server, tmp_path: Path
) -> None:
    for path in ("/models", "/chat/completions"):
        server.script(path, refuses(401, "bad key"))
    done = llmrank(*_run(tmp_path), "--base-url", server.url, "--out", tmp_path / "run")
    assert done.code == 4
    assert "bad key" in done.err


@pytest.mark.parametrize("probe", [(), ("--probe",)])
def test_a_dead_member_of_a_pool_ends_no_run(
    llmrank: Command, server: Server, tmp_path: Path, probe: tuple[str, ...]
) -> None:
    url = speak(server, SPEAKERS["vllm"])
    command = [*_run(tmp_path), "--base-url", f"{NOBODY},{url}", "--out", tmp_path / "run", *probe]
    done = llmrank(*command)
    assert done.code == 0, done.err
    labels = [body for body in asked(server) if body.get("max_tokens") == 1]
    assert "logprob_token_ids" in labels[-1]
    if probe:
        # What keeps the model from thinking is known of the other one alone.
        assert [one["url"] for one in manifest(tmp_path / "run")["servers"]] == [url]  # type: ignore[attr-defined]
        assert llmrank(*command).code == 0


def test_a_pool_of_nobody_cannot_be_probed(llmrank: Command, tmp_path: Path) -> None:
    command = [*_run(tmp_path), "--base-url", f"{NOBODY},{NOBODY}", "--out", tmp_path / "run"]
    assert llmrank(*command, "--probe").code == 4


def test_a_run_says_that_a_server_has_changed(
    llmrank: Command, server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = speak(server, SPEAKERS["vllm"])
    command = [*_run(tmp_path), "--base-url", url, "--out", tmp_path / "run"]
    assert llmrank(*command, "--probe").code == 0
    newer = replace(SPEAKERS["vllm"], routes={"//version": {"version": "0.33.0"}})
    speak(server, newer)
    assert llmrank(*command, "--passage-words", 1).code == 0
    (record,) = caplog.records
    assert record.name.startswith("llmrank")
    assert "0.33.0 instead of 0.32.0" in record.getMessage()
    assert len(asked(server)) == 1
    assert all(body["chat_template_kwargs"] for body in asked(server))
    # What probes anew is not told again, and keeps what it finds.
    again = [*command[:-1], tmp_path / "again"]
    assert llmrank(*again, "--probe", "--passage-words", 1).code == 0
    assert llmrank(*again, "--passage-words", 1).code == 0
    assert len(caplog.records) == 1
    assert "0.33.0" in (tmp_path / "again/probe.json").read_text()


def test_members_of_a_pool_are_probed_one_by_one(llmrank: Command, server: Server) -> None:
    url = speak(server, SPEAKERS["vllm"])
    with serve() as other:
        others = speak(other, replace(SPEAKERS["llama.cpp"], row={"owned_by": "llamacpp"}))
        pool = f"{url},{others},{NOBODY}"
        done = llmrank("probe", "--base-url", pool, "--model", MODEL)
        assert done.code == 0
        assert done.out.index(url) < done.out.index(others) < done.out.index(NOBODY)
        _, told = done.out.split("where the servers differ")
        rows = dict(re.findall(r"^(\S.*?)  +(\S.*?) *$", told, re.MULTILINE))
        assert rows["server"] == "vllm; llama.cpp"
        assert rows["label ids"] == "yes; no"
        assert rows["pointwise labels"] == "chat, exact token ids; chat, the 100 likeliest"
        assert "stop" not in rows
        assert "no answer" in next(
            line for line in done.out.splitlines() if line.startswith("error")
        )
        found = json.loads(llmrank("probe", "--base-url", pool, "--model", MODEL, "--json").out)
    assert [one.get("server") for one in found["servers"]] == ["vllm", "llama.cpp", None]
    assert found["differ"]["label_ids"] == ["yes", "no"]
    done = llmrank("probe", "--base-url", f"{NOBODY},{NOBODY}", "--model", MODEL)
    assert done.code == 4


def test_rerankers_and_decision_models_are_tried(llmrank: Command, server: Server) -> None:
    server.script("//score", sends({"data": [{"index": 0, "score": 0.9}]}))
    answers = [{"type": "predicate", "probability": p} for p in (0.8, 0.3)]
    server.script("/decisions", sends({"answers": answers}))
    for model, on, off in (("score:m", 0.9, 0.9), ("decisions:m", 0.8, 0.3)):
        done = llmrank("probe", "--model", model, "--base-url", server.url, "--json")
        found = json.loads(done.out)
        assert found["tried"] == (
            f"a passage on the topic: P(yes) = {on:.4f}; one off it: P(yes) = {off:.4f}"
        )
        assert found["model"].startswith(model)
        assert found["gives"] == "pair"
    server.script("//score", refuses(500, "broken"))
    done = llmrank("probe", "--model", "score:m", "--base-url", server.url)
    assert "no answer (HTTP 500" in done.out
    done = llmrank("probe", "--model", "score:m", "--base-url", NOBODY)
    assert "no answer" in done.out


def test_a_slow_start_costs_a_run_a_moment_and_no_scores(
    llmrank: Command, server: Server, tmp_path: Path
) -> None:
    url = speak(server, SPEAKERS["vllm"])
    row = {"id": MODEL, "owned_by": "vllm"}
    server.script("/models", waits(60, sends({})), sends({"data": [row]}))
    started = time.perf_counter()
    done = llmrank(*_run(tmp_path), "--base-url", url, "--out", tmp_path / "run")
    assert done.code == 0
    assert time.perf_counter() - started < 5
    assert len(asked(server)) == 4
    assert all("logprob_token_ids" in body for body in asked(server))


def test_members_keep_to_what_they_can_do_themselves(
    llmrank: Command, server: Server, tmp_path: Path
) -> None:
    with serve() as plain:
        urls = [speak(server, SPEAKERS["vllm"]), speak(plain, SPEAKERS["ollama"])]
        for answering in (server, plain):
            answering.script("/completions", waits(0.05, sends(completion())))
        plain.script("/chat/completions", waits(0.05, sends(chat(top=TOP))))
        command = [*_run(tmp_path), "--base-url", ",".join(urls), "--out", tmp_path / "run"]
        assert llmrank(*command).code == 0
        assert all("logprob_token_ids" in body for body in asked(server))
        assert not any("logprob_token_ids" in body for body in asked(plain))
        assert asked(server)
        assert asked(plain)


def test_a_probe_and_its_run_share_the_minute(
    llmrank: Command, server: Server, tmp_path: Path
) -> None:
    url = speak(server, SPEAKERS["vllm"])
    command = [*_run(tmp_path), "--base-url", url, "--probe"]
    assert llmrank("probe", "--base-url", url, "--model", MODEL).code == 0
    sent = len(server.received)
    server.received.clear()
    done = llmrank(*command, "--rpm", sent + 2, "--max-seconds", 2, "--out", tmp_path / "run")
    assert done.code != 0
    assert sum("Query: what" in json.dumps(body) for body in asked(server)) == 2
