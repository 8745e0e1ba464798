"""Running the command line inside the test's process."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import pytest

from llmrank.cli import main
from tests.judge import judge
from tests.servers import Server


class Done(NamedTuple):
    """Exit code, standard output and standard error of a command."""

    code: int
    out: str
    err: str


class Command(Protocol):
    """Run `llmrank` with arguments, and with bytes on standard input."""

    def __call__(self, *arguments: object, stdin: bytes = b"") -> Done: ...


@pytest.fixture
def llmrank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """The command line, working in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object, stdin: bytes = b"") -> Done:
        monkeypatch.setattr(sys, "argv", ["llmrank", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as leaving:
            code = int(leaving.code or 0)
        return Done(code, *capsys.readouterr())

    return run


@pytest.fixture
def server() -> Iterator[Server]:
    """A model that answers at once."""
    with judge() as running:
        yield running


@pytest.fixture(scope="session")
def bm25(collection: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A first-stage run over the example collection: 30 queries, up to 20 documents each."""
    from llmrank import trec
    from llmrank.api import Retriever

    path = tmp_path_factory.mktemp("first") / "bm25.trec"
    queries = list(trec.read_queries(collection))
    found = Retriever(trec.read_corpus(collection)).search_many(queries, 20)
    groups = [(q.id, [(c.document.id, c.score) for c in f]) for q, f in zip(queries, found)]  # noqa: B905
    trec.write_run(path, groups, tag="bm25")
    return path
