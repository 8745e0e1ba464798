from __future__ import annotations

import gzip
import json
import random
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llmrank import trec
from tests import servers
from tests.cli.conftest import Command
from tests.judge import asked, judge
from tests.servers import Server

FOLDER = {"journal.sqlite", "manifest.json", "run.trec", "scores.jsonl", "summary.json"}
Data = list[object]


@pytest.fixture
def data(bm25: Path, collection: Path) -> Data:
    return ["--run", bm25, "--corpus", collection, "--queries", collection]


@pytest.fixture
def oracle(data: Data, collection: Path) -> Data:
    return [*data, "--limit", 3, "--model", f"oracle:{collection / 'qrels/test.tsv'}"]


@pytest.fixture
def served(data: Data, server: Server) -> Data:
    return [*data, "--limit", 3, "--model", "openai:m", "--base-url", server.url]


def _visible(folder: Path) -> set[str]:
    """The files but for the journal's own and the hidden drafts of a process that was killed."""
    names = {path.name for path in folder.iterdir()}
    return {name for name in names if "sqlite-" not in name and not name.startswith(".")}


def _summary(folder: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((folder / "summary.json").read_text())
    return found


def test_the_run_folder(llmrank: Command, served: Data, bm25: Path, tmp_path: Path) -> None:
    done = llmrank("rerank", *served, "--method", "yesno@10", "--out", "runs/a")
    assert (done.code, done.out) == (0, "")
    folder = tmp_path / "runs" / "a"
    assert _visible(folder) == FOLDER
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    first = dict(trec.read_run(bm25))
    run = dict(trec.read_run(folder / "run.trec"))
    assert list(run) == ["q01", "q02", "q03"]
    for query, hits in run.items():
        assert {doc for doc, _ in hits[:10]} == {doc for doc, _ in first[query][:10]}
        assert [doc for doc, _ in hits[10:]] == [doc for doc, _ in first[query][10:]]
    scores = list(trec.read_jsonl(folder / "scores.jsonl"))
    assert len(scores) == 30
    ranked = sorted(
        (s for s in scores if s["query"] == "q01"), key=lambda s: -float(str(s["score"]))
    )
    assert [s["document"] for s in ranked] == [doc for doc, _ in run["q01"][:10]]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["method"] == "yesno@10"
    assert manifest["reported"] == ["served"]
    assert list(manifest["prompts"]) == ["grade"]
    assert {"name", "sha256"} == set(manifest["data"]["corpus"])
    summary = _summary(folder)
    assert (summary["queries"], summary["asks"], summary["requests"]) == (3, 30, 30)
    assert (summary["outcomes"], summary["complete"]) == ({"ok": 30}, True)
    assert summary["prompt_tokens"] == 30 * 30


def test_the_same_command_again_sends_nothing(
    llmrank: Command, served: Data, server: Server, tmp_path: Path
) -> None:
    command = ["rerank", *served, "--method", "sliding(window=5, stride=3)", "--out", "a"]
    assert llmrank(*command).code == 0
    before = [(tmp_path / "a" / name).read_bytes() for name in ("run.trec", "scores.jsonl")]
    sent = asked(server)
    assert llmrank(*command).code == 0
    assert asked(server) == sent
    assert [(tmp_path / "a" / n).read_bytes() for n in ("run.trec", "scores.jsonl")] == before
    assert _summary(tmp_path / "a")["requests"] == 0
    assert _summary(tmp_path / "a")["reused"] == sent


def test_a_deeper_run_reuses_what_the_one_beside_it_was_answered(
    llmrank: Command, served: Data, server: Server
) -> None:
    assert llmrank("rerank", *served, "--method", "yesno@5", "--out", "runs/shallow").code == 0
    assert asked(server) == 15
    assert llmrank("rerank", *served, "--method", "yesno@12", "--out", "runs/deep").code == 0
    assert asked(server) == 36
    bodies = [json.dumps(body, sort_keys=True) for body in server.bodies("/chat/completions")]
    assert len(set(bodies)) == 36
    assert llmrank("rerank", *served, "--method", "yesno@7", "--out", "runs/deep").code == 0
    assert asked(server) == 36


def test_without_out_the_run_is_printed(llmrank: Command, oracle: Data, tmp_path: Path) -> None:
    done = llmrank("rerank", *oracle)
    assert done.code == 0
    assert done.out == (tmp_path / "runs" / "unnamed" / "run.trec").read_text()
    assert "3 asks (3 ok)" in done.err


def test_json_is_all_there_is_on_standard_output(llmrank: Command, oracle: Data) -> None:
    done = llmrank("rerank", *oracle, "--json")
    assert json.loads(done.out)["outcomes"] == {"ok": 3}


def test_a_run_from_standard_input_or_packed(
    llmrank: Command, oracle: Data, bm25: Path, tmp_path: Path
) -> None:
    packed = tmp_path / "packed.trec.gz"
    packed.write_bytes(gzip.compress(bm25.read_bytes()))
    plain = llmrank("rerank", *oracle)
    assert plain.code == 0
    rest = oracle[2:]
    assert llmrank("rerank", "--run", packed, *rest).out == plain.out
    assert llmrank("rerank", "--run", "-", *rest, stdin=bm25.read_bytes()).out == plain.out


@pytest.mark.parametrize(
    ("given", "code", "told"),
    [
        (["--method", "nosuch"], 3, "no method named 'nosuch'"),
        (["--method", "sliding(window=1)"], 3, "window >= 2"),
        (["--method", "sliding(windows=4)"], 3, "has no parameter 'windows'"),
        (["--method", "sliding@0"], 3, "depth"),
        (["--model", "nosuch:x"], 3, "no kind of model named 'nosuch'"),
        (["--model", "oracle:nowhere.tsv"], 3, "nowhere.tsv"),
        (["--prompt", "order=nosuch"], 3, "no prompt named 'nosuch'"),
        (["--prompt", "order=yesno"], 3, "'yesno' is for `grade`"),
        (["--prompt", "grade=yesno"], 3, "would not be used"),
        (["--method", "grade", "--prompt", "grade=yesno"], 3, "the method asks for 3, 2, 1, 0"),
        (["--method", "jointrank(k=3, design=latin)"], 3, "query 'q01': a latin square of 20"),
        (["--method", "passages(full(by=labels), words=9, overlap=3)"], 3, "query 'q01': full"),
        (["--method", "passages(yesno)", "--passage-words", "199"], 3, "would be cut again"),
        (["--method", "passages(yesno, words=301)"], 3, "would be cut again"),
        (["--prompt", "yesno"], 3, "KIND=FILE"),
        (["--run", "missing.trec"], 3, "missing.trec"),
        (["--corpus", "missing.jsonl"], 3, "missing.jsonl"),
        (["--queries", "missing.jsonl"], 3, "missing.jsonl"),
        (["--max-cost", "1"], 3, "needs --prices"),
        (["--prices", "cheap"], 3, "write IN,OUT"),
        (["--limit", "0"], 2, "--limit"),
        (["--in-flight", "0"], 2, "--in-flight"),
        (["--passage-words", "0"], 2, "--passage-words"),
        (["--max-calls", "-1"], 2, "--max-calls"),
        (["--max-failures", "2"], 2, "--max-failures"),
        (["--nosuch"], 2, "--nosuch"),
    ],
)
def test_a_mistake_in_what_is_given_leaves_nothing_behind(
    llmrank: Command, oracle: Data, tmp_path: Path, given: list[str], code: int, told: str
) -> None:
    done = llmrank("rerank", *oracle, *given, "--out", "runs/a")
    assert (done.code, done.out) == (code, "")
    assert told in done.err
    assert "Traceback" not in done.err
    assert not (tmp_path / "runs").exists()


def _jsonl(path: Path, *texts: tuple[str, str]) -> Path:
    trec.write_jsonl(path, [{"_id": name, "text": text} for name, text in texts])
    return path


@pytest.mark.parametrize(
    ("run", "queries", "told"),
    [
        ("q Q0 d1 1 2.0 t\n", [("q", "why")], ""),
        ("q Q0 d9 1 2.0 t\n", [("q", "why")], "d9"),
        ("p Q0 d1 1 2.0 t\n", [("q", "why")], "'p'"),
        ("q Q0 d1 1 2.0 t\n", [("q", "  ")], "no text"),
        ("q Q0 d1 1 2.0\n", [("q", "why")], "first.trec:1"),
        ("q Q0 d1 1 nan t\n", [("q", "why")], "first.trec:1"),
        ("q Q0 d1 1 2 t\nq Q0 d1 2 1 t\n", [("q", "why")], "stands twice"),
    ],
)
def test_what_the_run_names_must_be_there(
    llmrank: Command, tmp_path: Path, run: str, queries: list[tuple[str, str]], told: str
) -> None:
    (tmp_path / "first.trec").write_text(run)
    (tmp_path / "qrels").write_text("q 0 d1 1\n")
    _jsonl(tmp_path / "docs.jsonl", ("d1", "a text"), ("d2", ""))
    _jsonl(tmp_path / "queries.jsonl", *queries)
    given = ["--corpus", "docs.jsonl", "--queries", "queries.jsonl", "--model", "oracle:qrels"]
    done = llmrank("rerank", "--run", "first.trec", *given, "--out", "a")
    assert done.code == (3 if told else 0)
    assert told in done.err
    assert (tmp_path / "a").exists() is not bool(told)


def test_the_results_of_before_survive_a_mistake(
    llmrank: Command, oracle: Data, tmp_path: Path
) -> None:
    assert llmrank("rerank", *oracle, "--out", "a").code == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    assert llmrank("rerank", *oracle, "--out", "a", "--prompt", "order=nosuch").code == 3
    assert llmrank("rerank", *oracle, "--out", "a", "--run", "missing").code == 3
    own = llmrank("rerank", *oracle, "--out", "a", "--run", "a/run.trec")
    assert own.code == 3
    assert "would be overwritten" in own.err
    assert {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()} == before


def test_a_folder_that_is_no_run_folder_is_left_alone(
    llmrank: Command, oracle: Data, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "queries.jsonl").write_text("mine")
    for out in ("file", "file/below", "mine", "."):
        done = llmrank("rerank", *oracle, "--out", out)
        assert done.code == 3
        assert out in done.err
    assert {path.name for path in tmp_path.iterdir()} == {"file", "mine"}
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["queries.jsonl"]


@pytest.mark.parametrize(
    ("behaviour", "method", "told"),
    [
        (servers.refuses(401, "wrong key"), "sliding", "wrong key"),
        (servers.refuses(404, "The model `m` does not exist"), "sliding", "does not exist"),
        (servers.sends(servers.chat("Yes")), "yesno", "no log-probabilities"),
    ],
)
def test_a_model_that_cannot_be_used(
    llmrank: Command,
    served: Data,
    server: Server,
    tmp_path: Path,
    behaviour: servers.Behaviour,
    method: str,
    told: str,
) -> None:
    server.script("/chat/completions", behaviour)
    done = llmrank("rerank", *served, "--method", method, "--out", "a")
    assert done.code == 4
    assert told in done.err
    assert _visible(tmp_path / "a") == {"journal.sqlite"}


def test_no_server(llmrank: Command, data: Data) -> None:
    with servers.serve() as gone:
        url = gone.url
    done = llmrank("rerank", *data, "--base-url", url, "--out", "a")
    assert done.code == 4
    assert url in done.err


def test_replies_without_a_ranking_keep_the_order_and_are_told(
    llmrank: Command, served: Data, server: Server, bm25: Path, tmp_path: Path
) -> None:
    server.script("/chat/completions", servers.sends(servers.chat("I would rather not say.")))
    command = ["rerank", *served, "--method", "sliding(window=10, stride=5)", "--out", "a"]
    done = llmrank(*command)
    assert done.code == 5
    assert "--max-failures" in done.err
    first = dict(trec.read_run(bm25))
    for query, hits in trec.read_run(tmp_path / "a" / "run.trec"):
        assert [doc for doc, _ in hits] == [doc for doc, _ in first[query]]
    assert llmrank(*command, "--max-failures", "1").code == 0


@pytest.mark.parametrize("method", ["yesno@10", "sliding(window=4, stride=2)@10"])
def test_a_cap_on_calls_stops_and_a_higher_one_goes_on(
    llmrank: Command, served: Data, server: Server, tmp_path: Path, method: str
) -> None:
    whole = ["rerank", *served, "--method", method]
    capped = llmrank(*whole, "--out", "a/capped", "--max-calls", 5)
    assert capped.code == 6
    assert asked(server) == 5
    assert _summary(tmp_path / "a/capped")["complete"] is False
    partial = dict(trec.read_run(tmp_path / "a/capped/run.trec"))
    assert llmrank(*whole, "--out", "a/capped", "--max-calls", 1000).code == 0
    sent = asked(server)
    assert llmrank(*whole, "--out", "b/whole").code == 0
    assert asked(server) == 2 * sent
    done = (tmp_path / "a/capped/run.trec").read_bytes()
    assert done == (tmp_path / "b/whole/run.trec").read_bytes()
    for query, hits in trec.read_run(tmp_path / "b/whole/run.trec"):
        assert {doc for doc, _ in hits} == {doc for doc, _ in partial[query]}


@pytest.mark.parametrize(
    "cap", [["--max-tokens", 300], ["--max-cost", 0.0003, "--prices", "1,1"], ["--max-calls", 0]]
)
def test_caps_on_tokens_and_money(
    llmrank: Command, served: Data, server: Server, tmp_path: Path, cap: list[object]
) -> None:
    done = llmrank("rerank", *served, "--method", "yesno@10", *cap, "--out", "a")
    assert done.code == 6
    assert asked(server) * 30 <= 300
    assert len(dict(trec.read_run(tmp_path / "a/run.trec"))) == 3


def test_a_deadline(llmrank: Command, data: Data) -> None:
    with judge(delay=0.2) as slow:
        given = [*data, "--model", "openai:m", "--base-url", slow.url, "--in-flight", 1]
        done = llmrank("rerank", *given, "--method", "yesno@10", "--max-seconds", 0.5, "--out", "a")
    assert done.code == 6
    assert 1 <= asked(slow) <= 4


def test_a_prompt_of_ones_own(
    llmrank: Command, served: Data, server: Server, tmp_path: Path
) -> None:
    text = llmrank("prompts", "show", "yesno").out
    (tmp_path / "mine.toml").write_text(
        text.replace("Does the passage", "My own: does the passage")
    )
    given = ["--method", "yesno@3", "--prompt", "grade=mine.toml", "--out", "a"]
    assert llmrank("rerank", *served, *given).code == 0
    assert all("My own" in str(body) for body in server.bodies("/chat/completions"))


# ---- real processes that are stopped ----

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(data: Data, tmp_path: Path) -> Iterator[Start]:
    running: list[subprocess.Popen[str]] = []

    def begin(server: Server, *given: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "llmrank.cli", "rerank", *map(str, data)]
        command += ["--model", "openai:m", "--base-url", server.url, *map(str, given)]
        pipe = subprocess.PIPE
        process = subprocess.Popen(
            command,
            stdout=pipe,
            stderr=pipe,
            text=True,
            cwd=tmp_path,
            # A job in the background is started with interrupts ignored, and so are its children.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        running.append(process)
        return process

    yield begin
    for process in running:
        process.kill()
        process.communicate()


def _wait_for(server: Server, count: int, process: subprocess.Popen[str]) -> None:
    while asked(server) < count and process.poll() is None:
        time.sleep(0.002)


def _journalled(folder: Path) -> set[str]:
    if not (folder / "journal.sqlite").exists():
        return set()
    db = sqlite3.connect(folder / "journal.sqlite", timeout=30)
    try:
        return {key for (key,) in db.execute("SELECT key FROM answers")}
    except sqlite3.OperationalError:  # killed before there was a table
        return set()
    finally:
        db.close()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["yesno@20", "sliding(window=6, stride=2)"])
def test_killed_again_and_again_it_ends_as_if_never_killed(
    start: Start, tmp_path: Path, method: str
) -> None:
    moments = random.Random(method)
    in_flight, lives = 8, 0
    given = ["--method", method, "--in-flight", in_flight, "--out"]
    with judge(delay=0.004) as server:
        assert start(server, *given, "whole/run").wait(60) == 0
        planned = asked(server)
        server.received.clear()
        folder = tmp_path / "killed" / "run"
        while True:
            known, before = len(_journalled(folder)), asked(server)
            process = start(server, *given, folder)
            _wait_for(server, before + moments.randrange(planned // 4), process)
            time.sleep(moments.random() * 0.02)
            process.kill()
            lives += 1
            if process.wait(10) == 0:
                break
            # An answer that the journal has is not asked for again.
            assert asked(server) - before <= planned - known
        assert lives > 3
        # Beyond the plan is at most what was under way when the process was killed.
        assert planned <= asked(server) <= planned + (lives - 1) * in_flight
        assert len(_journalled(folder)) == planned
        before = asked(server)
        assert start(server, *given, folder).wait(60) == 0
        assert asked(server) == before
    for name in ("run.trec", "scores.jsonl"):
        assert (folder / name).read_bytes() == (tmp_path / "whole/run" / name).read_bytes()
    assert _visible(folder) == FOLDER


def test_interrupted_it_says_so_and_goes_on_later(start: Start, tmp_path: Path) -> None:
    with judge(delay=0.01) as server:
        given = ["--method", "yesno@5", "--in-flight", 4, "--out", "a"]
        process = start(server, *given)
        _wait_for(server, 20, process)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=10)
        assert (process.returncode, out) == (130, "")
        assert "interrupted" in err
        assert "Traceback" not in err
        known = len(_journalled(tmp_path / "a"))
        assert known >= 16
        assert not (tmp_path / "a" / "run.trec").exists()
        before = asked(server)
        assert start(server, *given).wait(30) == 0
        assert asked(server) - before == 150 - known
