from __future__ import annotations

import inspect
import json
import re
from pathlib import Path

import pytest

from llmrank import Reranker
from llmrank.cli.estimate import estimate
from llmrank.cli.rerank import rerank
from llmrank.cli.run import run
from llmrank.errors import BackendError
from tests.cli.conftest import Command
from tests.effort import some
from tests.judge import asked
from tests.servers import MODEL, SPEAKERS, Server, speak

Data = list[object]


@pytest.fixture
def served(bm25: Path, collection: Path, server: Server) -> Data:
    data: Data = ["--run", bm25, "--corpus", collection, "--queries", collection]
    return [*data, "--limit", 4, "--model", "openai:m", "--base-url", server.url]


@pytest.mark.parametrize(
    "method", ["yesno@1", "yesno@20", "sliding(window=6, stride=4)@20", "sliding(window=5)@5"]
)
def test_what_is_estimated_is_what_is_sent(
    llmrank: Command, served: Data, server: Server, tmp_path: Path, method: str
) -> None:
    if method == "sliding(window=5)@5":
        method = "sliding(window=5, stride=5)@5"
    given = [*served, "--method", method, "--out", "runs/a"]
    told = json.loads(llmrank("estimate", *given, "--json").out)
    assert asked(server) == 0
    assert not (tmp_path / "runs").exists()
    assert llmrank("rerank", *given).code == 0
    summary = json.loads((tmp_path / "runs/a/summary.json").read_text())
    assert told["calls"] == told["calls_at_most"] == asked(server) == summary["requests"]
    assert (told["queries"], told["known"]) == (4, 0)
    assert told["rounds"] == summary["rounds"]


def test_what_a_journal_knows_costs_nothing(
    llmrank: Command, served: Data, server: Server, tmp_path: Path
) -> None:
    given = [*served, "--prices", "1,2", "--json", "--out"]
    assert llmrank("rerank", *served, "--method", "yesno@5", "--out", "runs/a").code == 0
    sent = asked(server)
    before = {path: path.read_bytes() for path in (tmp_path / "runs").rglob("*") if path.is_file()}
    for folder in ("runs/a", "runs/beside"):
        again = json.loads(llmrank("estimate", *given, folder, "--method", "yesno@5").out)
        assert (again["calls"], again["known"], again["cost"]) == (0, sent, 0)
        deeper = json.loads(llmrank("estimate", *given, folder, "--method", "yesno@8").out)
        assert (deeper["calls"], deeper["calls_at_most"], deeper["known"]) == (12, 12, sent)
        usage = deeper["usage"]
        price = (usage["prompt_tokens"] + 2 * usage["completion_tokens"]) / 1e6
        assert deeper["cost"] == pytest.approx(price)
    elsewhere = json.loads(llmrank("estimate", *given, "other/a", "--method", "yesno@5").out)
    assert (elsewhere["calls"], elsewhere["known"]) == (sent, 0)
    assert {p: p.read_bytes() for p in before} == before
    assert not (tmp_path / "runs" / "beside").exists()
    assert asked(server) == sent


def test_the_table(llmrank: Command, served: Data) -> None:
    done = llmrank("estimate", *served, "--method", "yesno@5")
    assert done.code == 0
    assert "give --prices" in done.out
    assert re.search(r"^calls +20 *$", done.out, re.MULTILINE)
    done = llmrank("estimate", *served, "--method", "setwise(k=2)@10")
    found = re.search(r"^calls +(\d+) to (\d+) *$", done.out, re.MULTILINE)
    assert found is not None
    told = json.loads(llmrank("estimate", *served, "--method", "setwise(k=2)@10", "--json").out)
    assert [told["calls"], told["calls_at_most"]] == [int(found[1]), int(found[2])]


def test_a_pipe_gets_whole_lines(llmrank: Command, served: Data) -> None:
    name = f"openai:{'m' * 300}"
    done = llmrank("estimate", *served, "--model", name, "--method", "yesno@5")
    assert re.search(rf"^model +{name}@\S+ *$", done.out, re.MULTILINE)


@pytest.mark.parametrize(
    "method",
    some(
        [
            "prp(sliding=3)@8",
            "setwise_bubblesort(k=3)@12",
            "setwise(k=3)@12",
            "tdpart(window=6, pivot=3)@20",
            "psc(sliding(window=5, stride=3), samples=3)@10",
            "yesno@15 >> prp(sliding=2)@5",
            "passages(prp(sliding=2), words=8, overlap=2)@3",
        ]
    ),
)
def test_what_is_sent_is_between_the_two(
    llmrank: Command, served: Data, server: Server, method: str
) -> None:
    given = [*served, "--method", method, "--out", "runs/a"]
    told = json.loads(llmrank("estimate", *given, "--json").out)
    assert told["known"] == 0
    assert llmrank("rerank", *given).code == 0
    assert told["calls"] <= asked(server) <= told["calls_at_most"]
    assert llmrank("rerank", *given, "--out", "runs/b").code == 0
    again = json.loads(llmrank("estimate", *given, "--json").out)
    assert (again["calls"], again["calls_at_most"], again["known"]) == (0, 0, asked(server))


def test_it_takes_the_flags_of_a_run(llmrank: Command, served: Data, server: Server) -> None:
    own = inspect.signature(estimate).parameters
    assert inspect.signature(rerank).parameters.keys() <= own.keys()
    assert inspect.signature(run).parameters.keys() <= own.keys()
    given = [*served, "--method", "yesno@5", "--max-calls", 3, "--max-tokens", 9, "--probe"]
    given += ["--max-seconds", 1, "--prices", "1,2", "--max-cost", 0, "--max-failures", 0]
    done = llmrank("estimate", *given, "--hedge", "--json")
    assert (done.code, json.loads(done.out)["calls"]) == (0, 20)
    done = llmrank("estimate", *given, "--rpm", 6, "--in-flight", 2)
    assert re.search(r"^minutes, at least, by --rpm and --tpm +3 *$", done.out, re.MULTILINE)
    assert server.received == []


def test_a_known_server_is_asked_for_nothing(
    llmrank: Command, served: Data, server: Server, tmp_path: Path
) -> None:
    url = speak(server, SPEAKERS["vllm"])
    given = [*served, "--base-url", url, "--model", f"openai:{MODEL}", "--method", "yesno@5"]
    probed = llmrank("rerank", *given, "--probe", "--out", "runs/a")
    assert probed.code == 0, probed.err
    manifest = json.loads((tmp_path / "runs/a/manifest.json").read_text())
    assert manifest["tokens"].startswith("the tokenizer of http")
    server.received.clear()
    told = json.loads(llmrank("estimate", *given, "--out", "runs/b", "--json").out)
    assert (told["calls"], told["known"]) == (0, 20)
    # The name that the journal has, in all that is shown.
    assert told["model"] == manifest["model"]
    assert told["model"].endswith("#thinking=off")
    assert f"yesno@5 by {manifest['model']}, into runs/a" in probed.err
    given += ["--out", "runs/b", "--passage-tokens", 3]
    told = json.loads(llmrank("estimate", *given, "--json").out)
    assert told["passages_cut"] == told["calls"] == 20
    assert told["counting"].startswith("estimate")
    assert server.received == []
    again = llmrank("rerank", *given[:-2])
    assert again.err.startswith(f"llmrank: yesno@5 by {manifest['model']}, into runs/b")


def test_it_fails_as_the_run_would(llmrank: Command, served: Data) -> None:
    assert llmrank("estimate", *served, "--method", "nosuch").code == 3
    assert llmrank("estimate", *served, "--run", "missing").code == 3
    assert llmrank("estimate", *served, "--prompt", "order=nosuch").code == 3
    assert llmrank("estimate", *served, "--limit", "0").code == 2
    assert llmrank("estimate", *served, "--max-cost", 1).code == 3
    assert llmrank("estimate", *served, "--hedge", "--rpm", 1).code == 3
    latin = llmrank("estimate", *served, "--method", "jointrank(k=3, design=latin)")
    assert (latin.code, latin.out) == (3, "")
    assert "a latin square of 20 items" in latin.err


def test_an_estimate_needs_no_key_and_a_run_does(
    llmrank: Command, bm25: Path, collection: Path, tmp_path: Path
) -> None:
    flags = ["--run", bm25, "--corpus", collection, "--queries", collection, "--limit", 1]
    flags += ["--model", "openai:gpt-4.1-mini"]
    assert json.loads(llmrank("estimate", *flags, "--json").out)["calls"] > 0
    done = llmrank("rerank", *flags, "--out", tmp_path / "run")
    assert done.code == 4
    assert "OPENAI_API_KEY" in done.err
    with pytest.raises(BackendError, match="OPENAI_API_KEY"):
        Reranker("openai:gpt-4.1-mini")


@pytest.fixture
def piped(collection: Path, server: Server) -> Data:
    data: Data = ["--corpus", collection, "--queries", collection, "--limit", 3]
    encoder = ["--encoder", "openai:e", "--encoder-url", server.url]
    return [*data, "--model", "openai:m", "--base-url", server.url, *encoder]


def paths(server: Server, path: str) -> int:
    return len(server.bodies(path))


@pytest.mark.parametrize(
    "pipeline",
    some(
        [
            "bm25@8",
            "bm25@8 >> yesno@4",
            "bm25 >> query2doc(n=3)",
            "bm25@8 >> query2doc(n=2) >> sliding(window=4, stride=2)@8",
            "bm25@20 >> grf(tasks=facts+news, prf=true) >> yesno@6 >> full@3",
            "bm25@20 >> clarify",
            "bm25 >> rm3 >> yesno@3",
            "dense@5 >> hyde(n=2) >> yesno@5",
            "dense@9",
            "dense >> vector_prf",
            "hybrid@7 >> subqueries >> yesno@7",
            "dense@10 >> rerank_feedback(depth=6)",
        ]
    ),
)
def test_what_is_estimated_of_a_pipeline_is_what_is_sent(
    llmrank: Command, piped: Data, server: Server, tmp_path: Path, pipeline: str
) -> None:
    given = [*piped, "--index", "ix", "--out", "runs/a"]
    done = llmrank("estimate", "--pipeline", pipeline, *given, "--json")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert server.received == []
    assert not list(tmp_path.iterdir())
    sent = llmrank("run", pipeline, *given)
    assert sent.code == 0, sent.err
    summary = json.loads((tmp_path / "runs/a/summary.json").read_text())
    assert told["calls"] == told["calls_at_most"] == summary["requests"]
    assert told["calls"] == paths(server, "/chat/completions")
    assert told["embedding_calls"] == paths(server, "/embeddings")
    assert told["embedding_calls"] == summary["embedding_requests"]
    assert (told["queries"], told["known"]) == (3, 0)
    assert told["rounds"] == summary["rounds"]
    again = json.loads(llmrank("estimate", "--pipeline", pipeline, *given, "--json").out)
    assert (again["calls"], again["embedding_calls"]) == (0, 0) or pipeline[0] != "b"


def test_a_gate_and_a_sort_have_a_range(llmrank: Command, piped: Data, server: Server) -> None:
    pipeline = "bm25@12 >> gated(query2doc, by=grade, k=4) >> setwise(k=3)@12"
    told = json.loads(llmrank("estimate", "--pipeline", pipeline, *piped, "--json").out)
    assert server.received == []
    assert told["calls"] < told["calls_at_most"]
    assert llmrank("run", pipeline, *piped, "--out", "a").code == 0
    assert paths(server, "/chat/completions") <= told["calls_at_most"]
    # One text, both lists of four graded, and the sort.
    assert told["calls_at_most"] >= 3 * (1 + 8)


def test_a_short_list_leaves_room_for_what_a_text_may_find(
    llmrank: Command, server: Server, tmp_path: Path
) -> None:
    texts = ["tides of the moon", "yeast in dough", "a bridge", "bread", "gas", "sugar and yeast"]
    (tmp_path / "docs").write_text(
        "".join(json.dumps({"_id": str(i), "text": t}) + "\n" for i, t in enumerate(texts))
    )
    (tmp_path / "queries").write_text('{"_id": "q", "text": "tides"}\n')
    data = ["--corpus", "docs", "--queries", "queries"]
    given = [*data, "--model", "openai:m", "--base-url", server.url, "--json"]
    pipeline = "bm25@10 >> query2doc >> yesno@5"
    told = json.loads(llmrank("estimate", "--pipeline", pipeline, *given).out)
    assert (told["calls"], told["calls_at_most"]) == (2, 6)
    assert llmrank("run", pipeline, *given, "--out", "a").code == 0
    assert 2 < asked(server) <= 6


def test_the_table_of_a_pipeline(llmrank: Command, piped: Data, server: Server) -> None:
    pipeline = "dense@5 >> hyde(n=2) >> yesno@5"
    done = llmrank("estimate", "--pipeline", pipeline, *piped, "--prices", "1,1")
    assert done.code == 0, done.err
    assert re.search(r"^pipeline +dense@5 >> hyde\(n=2", done.out, re.MULTILINE)
    assert re.search(r"^calls +21 *$", done.out, re.MULTILINE)
    assert "embedding requests" in done.out
    assert server.received == []


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ([], "give --run"),
        (["--run", "a.trec", "--pipeline", "bm25"], "give --run"),
        (["--pipeline", "bm25", "--method", "yesno"], "give --run"),
        (["--pipeline", "bm25 >> nosuch"], "nosuch"),
        (["--pipeline", "bm25 >> hyde"], "not for bm25"),
        (["--pipeline", "bm25 >> yesno", "--prompt", "hyde=hyde"], "would not be used"),
        (["--pipeline", "bm25", "--k1", "inf"], "k1=inf"),
        (["--pipeline", "bm25", "--fusion", "nosuch"], "nosuch"),
        (["--pipeline", "bm25", "--dense-weight", ".5"], "not for bm25"),
    ],
)
def test_mistakes_of_a_pipeline(
    llmrank: Command, piped: Data, server: Server, given: list[str], told: str
) -> None:
    done = llmrank("estimate", *piped, *given)
    assert (done.code, done.out, server.received) == (3, "", [])
    assert told in done.err
