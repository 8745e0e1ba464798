from __future__ import annotations

import subprocess
import sys
from importlib import util
from pathlib import Path

import pytest

from llmrank.backends import tokens

O200K = "fb374d419588a4632f3f557e76b4b70aebbca790"


@pytest.mark.parametrize(("text", "count"), [("", 0), ("a", 1), ("abcd", 1), ("abcde", 2)])
def test_the_estimate_rounds_up(text: str, count: int) -> None:
    assert tokens.estimate(text) == count


@pytest.mark.parametrize("model", ["Qwen/Qwen3-4B", "gpt-4.1-mini", "openai/gpt-4", "gpt2"])
def test_without_a_cache_everything_is_an_estimate(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("", str(tmp_path), str(tmp_path / "absent")):
        monkeypatch.setenv("TIKTOKEN_CACHE_DIR", folder)
        count, how = tokens.counter(model)
        assert (count("12345678"), how) == (2, "estimate: 4 characters a token")


def test_a_damaged_file_is_neither_used_nor_fetched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    (tmp_path / O200K).write_bytes(b"IQ== 0\n")
    assert tokens.counter("gpt-4.1")[1].startswith("estimate")
    assert (tmp_path / O200K).read_bytes() == b"IQ== 0\n"


def test_tiktoken_where_its_file_is_cached() -> None:
    count, how = tokens.counter("gpt-4.1-mini")
    if how.startswith("estimate"):
        pytest.skip("tiktoken has no cached encoding here")
    assert how == "tiktoken o200k_base"
    assert count("hello world") == 2
    assert count("<|endoftext|>") > 1


def test_the_table_agrees_with_tiktoken() -> None:
    found = util.find_spec("tiktoken_ext.openai_public")
    assert found is not None
    assert found.origin is not None
    source = Path(found.origin).read_text(encoding="utf-8")
    for _, sha256 in tokens._CACHED.values():
        assert sha256 in source


def test_importing_the_backends_loads_no_client() -> None:
    code = (
        "import sys, llmrank.backends.openai, llmrank.backends.probe, llmrank.backends.tokens\n"
        "sys.exit(bool({'openai', 'tiktoken', 'aiohttp', 'httpx'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
