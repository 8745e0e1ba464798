from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from llmrank import __version__, expand
from llmrank.rerank import METHODS
from tests.cli.conftest import Command

HEAVY = {
    "torch", "transformers", "sentence_transformers", "openai", "numpy", "bm25s", "ir_measures",
    "jinja2", "aiohttp", "sqlite3", "asyncio",
}  # fmt: skip
SEE = """
import sys
from llmrank.cli import main
sys.argv = ["llmrank", *sys.argv[1:]]
try:
    main()
finally:
    print(*sys.modules, file=sys.stderr)
"""


def test_help_imports_no_library_that_it_does_not_need() -> None:
    for command in ([], ["rerank"], ["search"], ["eval"]):
        done = subprocess.run(
            [sys.executable, "-c", SEE, *command, "--help"],
            capture_output=True,
            text=True,
            check=True,
        )
        assert not HEAVY & set(done.stderr.split())
        assert "Usage" in done.stdout


def test_version(llmrank: Command) -> None:
    assert llmrank("--version").out == f"llmrank {__version__}\n"


def test_wrong_usage(llmrank: Command) -> None:
    for given in (["nosuch"], ["--nosuch"], ["rerank"], []):
        assert llmrank(*given).code == 2


def test_methods(llmrank: Command) -> None:
    found = json.loads(llmrank("methods", "--json").out)
    assert {row["method"].partition("(")[0].partition("@")[0] for row in found["reranking"]} == set(
        METHODS
    )
    asks = {row["method"]: row["asks"] for row in found["reranking"]}
    assert asks["yesno@100"] == "Grade"
    assert asks["prp_allpair(by=text)@100"] == "Pick by text"
    sliding = next(row for row in found["reranking"] if row["method"].startswith("sliding"))
    assert (sliding["calls"], sliding["rounds"]) == (9, 9)
    assert sliding["formulas"]["exact"].startswith("n if n <= window")
    stages = {row["first stage"] for row in found["expansion"]}
    assert {"bm25", "dense", "bm25 or dense"} <= stages
    expansions = {row["method"].partition("(")[0] for row in found["expansion"]}
    assert expansions == set(expand.METHODS)
    table = llmrank("methods")
    assert table.code == 0
    for row in (*found["reranking"], *found["expansion"]):
        assert row["method"] in table.out


def test_the_checkout_and_the_module_run_it_too() -> None:
    root = Path(__file__).parents[2]
    for command in (["cli.py"], ["-m", "llmrank.cli"]):
        done = subprocess.run(
            [sys.executable, *command, "--version"],
            capture_output=True,
            text=True,
            cwd=root,
            check=True,
        )
        assert done.stdout == f"llmrank {__version__}\n"


def test_a_reader_that_leaves_early_sees_no_traceback(collection: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    given = ["search", "--corpus", str(collection), "--queries", str(collection)]
    done = subprocess.run(
        [sys.executable, "-m", "llmrank.cli", *given],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writing)
    assert done.stderr == ""
