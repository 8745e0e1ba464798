"""Every snippet of the README and of the pages in docs/ runs, against a server on loopback."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp import web

from tests.judge import answer
from tests.servers import Body, Server, serve

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(python|console)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def _snippets(page: Path) -> list[tuple[str, str]]:
    return [(kind, text) for kind, text in BLOCK.findall(page.read_text(encoding="utf-8"))]


async def _answer(_request: web.Request, body: Body) -> web.StreamResponse:
    return web.json_response(answer(body))


async def _complete(_request: web.Request, body: Body) -> web.StreamResponse:
    choice = {"index": 0, "text": " why does bread rise", "finish_reason": "stop"}
    return web.json_response({"model": "served", "choices": [choice], "usage": None})


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serve() as server:
        server.script("/chat/completions", _answer)
        server.script("/completions", _complete)
        yield server


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=page.name, marks=[pytest.mark.slow] if page.parent != ROOT else [])
        for page in PAGES
    ],
)
def test_every_snippet_runs(page: Path, server: Server, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "examples" / "collection", tmp_path / "examples" / "collection")
    environment = {
        **os.environ,
        "OPENAI_BASE_URL": server.url,
        "OPENAI_API_KEY": "a key",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    snippets = _snippets(page)
    program = "\n".join(text for kind, text in snippets if kind == "python")
    shell = "\n".join(text for kind, text in snippets if kind == "console")
    commands = re.sub(r"^\$ ", "", shell, flags=re.MULTILINE)
    for command in (["bash", "-euo", "pipefail", "-c", commands], [sys.executable, "-c", program]):
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=100,
        )
        assert done.returncode == 0, done.stderr[-3000:]


def test_there_are_snippets_to_run() -> None:
    assert sum(len(_snippets(page)) for page in PAGES) > 8


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
