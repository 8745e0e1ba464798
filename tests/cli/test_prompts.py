from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmrank import prompts
from tests.cli.conftest import Command
from tests.effort import some


def test_list(llmrank: Command) -> None:
    rows = json.loads(llmrank("prompts", "list", "--json").out)
    assert {row["name"] for row in rows} == set(prompts.names())
    assert all(row["ask"] and row["description"] and row["source"] for row in rows)
    table = llmrank("prompts", "list")
    assert table.code == 0
    assert all(row["name"] in table.out for row in rows)


@pytest.mark.parametrize("name", some(prompts.names()))
def test_show_prints_the_file_and_render_what_is_sent(llmrank: Command, name: str) -> None:
    assert llmrank("prompts", "show", name).out == prompts.path_of(name).read_text()
    given = ["--query", "why is it so", "--passage", "a first text", "--passage", "a second"]
    done = llmrank("prompts", "render", name, *given)
    assert done.code == 0
    assert "why is it so" in done.out or "a first text" in done.out


def test_a_copy_that_was_changed_is_rendered(llmrank: Command, tmp_path: Path) -> None:
    text = llmrank("prompts", "show", "yesno").out
    (tmp_path / "mine.toml").write_text(text.replace("Query:", "Frage:"))
    assert "Frage: what" in llmrank("prompts", "render", "mine.toml").out


@pytest.mark.parametrize("command", ["show", "render"])
@pytest.mark.parametrize("name", ["nosuch", "nowhere/mine.toml"])
def test_a_name_that_is_not_there(llmrank: Command, command: str, name: str) -> None:
    done = llmrank("prompts", command, name)
    assert (done.code, done.out) == (3, "")
    assert name in done.err


def test_a_template_that_is_broken(llmrank: Command, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('ask = "grade"\n[[messages]]\nrole = "user"\ntext = "{{ x"')
    done = llmrank("prompts", "render", "mine.toml")
    assert (done.code, done.out) == (3, "")
    assert "mine.toml" in done.err


@pytest.mark.parametrize("name", some(prompts.names()))
def test_show_and_render_as_json(llmrank: Command, name: str) -> None:
    shown = json.loads(llmrank("prompts", "show", name, "--json").out)
    assert (shown["name"], shown["sha256"]) == (name, prompts.load(name).sha256)
    sent = json.loads(llmrank("prompts", "render", name, "--query", "why", "--json").out)
    request = prompts.example(name, "why", ["Dense retrieval compares vectors."])
    assert sent["params"]["max_tokens"] == request.params.max_tokens
    assert bool(sent["messages"]) != bool(sent["prompt"])
