from __future__ import annotations

import json

from tests.cli.conftest import Command
from tests.servers import MODEL, SPEAKERS, Server, speak


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
