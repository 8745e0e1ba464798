"""A server that judges, for every test of the library."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.api.judges import answer
from tests.servers import Server, serve


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    with serve() as server:
        yield server


@pytest.fixture
def server(running: Server) -> Server:
    running.received.clear()
    running.script("/chat/completions", answer)
    return running


@pytest.fixture(scope="module")
def judgements(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Judgements for an oracle."""
    path = tmp_path_factory.mktemp("judgements") / "qrels.txt"
    path.write_text("".join(f"q 0 d{i} {i % 3}\n" for i in range(12)), encoding="utf-8")
    return path
