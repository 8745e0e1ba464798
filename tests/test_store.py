from __future__ import annotations

import json
import math
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import fields
from multiprocessing import get_context
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from llmrank.errors import InputError
from llmrank.request import Reply
from llmrank.store import JOURNAL, Journal, RunFolder, write_whole
from llmrank.types import Usage
from tests.effort import examples

TEXT = st.text(st.characters(exclude_categories=()), max_size=40)  # lone surrogates too
NUMBERS = st.floats() | st.integers(-(2**40), 2**40).map(float)
COUNTS = st.integers(0, 2**40)
REPLIES = st.builds(
    Reply,
    text=TEXT,
    finish=TEXT,
    reasoning=TEXT,
    label_logprobs=st.dictionaries(TEXT, NUMBERS, max_size=4),
    logprob=st.none() | NUMBERS,
    tokens=COUNTS,
    attention=st.none() | st.lists(st.floats(-1e9, 1e9), max_size=4).map(tuple),
    vectors=st.none()
    | arrays(np.float32, array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=4)),
    usage=st.builds(Usage, COUNTS, COUNTS, COUNTS, COUNTS),
    model=TEXT,
    seconds=NUMBERS,
)
NEVER_STORED = {"error", "transient", "retry_after", "unasked", "reused"}


def _same(one: object, other: object) -> bool:
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        same = one.shape == other.shape and one.dtype == other.dtype
        return same and one.tobytes() == other.tobytes()
    if isinstance(one, float) and isinstance(other, float):
        return one == other or (math.isnan(one) and math.isnan(other))
    if isinstance(one, dict) and isinstance(other, dict):
        return list(one) == list(other) and all(_same(one[k], other[k]) for k in one)
    return type(one) is type(other) and one == other


Kept = Callable[[Journal], Journal]


@pytest.fixture(scope="module")
def shared_journal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Journal]:
    journal = Journal(tmp_path_factory.mktemp("journal") / JOURNAL)
    yield journal
    journal.close()


@pytest.fixture
def kept() -> Iterator[Kept]:
    """Journals given to it are closed when the test has ended."""
    journals: list[Journal] = []

    def keep(journal: Journal) -> Journal:
        journals.append(journal)
        return journal

    yield keep
    for journal in journals:
        journal.close()


def test_every_reply_comes_back_as_it_was(shared_journal: Journal) -> None:
    number = 0

    @examples(150)
    @given(REPLIES, TEXT)
    def check(reply: Reply, name: str) -> None:
        nonlocal number
        number += 1
        shared_journal.put([(str(number), {"query": name}, reply)])
        back = shared_journal.get(str(number))
        assert back is not None
        assert back.reused
        for field in fields(Reply):
            if field.name not in NEVER_STORED:
                assert _same(getattr(reply, field.name), getattr(back, field.name)), field.name

    check()
    assert len(shared_journal) == number == len(list(shared_journal))


def test_what_a_request_was_about_is_kept(tmp_path: Path, kept: Kept) -> None:
    journal = kept(Journal(tmp_path / JOURNAL))
    about = {"ask": "order", "query": "größe", "docs": ["d1", "\ud800"]}
    journal.put([("k", about, Reply(text="x"))])
    assert [(key, told) for key, told, _ in journal] == [("k", about)]


def test_the_first_answer_to_a_key_stays(tmp_path: Path, kept: Kept) -> None:
    journal = kept(Journal(tmp_path / JOURNAL))
    journal.put([("k", {}, Reply(text="first"))])
    journal.put([("k", {}, Reply(text="second")), ("l", {}, Reply(text="other"))])
    found = journal.get("k")
    assert found is not None
    assert (found.text, len(journal), journal.get("m")) == ("first", 2, None)
    journal.close()
    again = kept(Journal(tmp_path / JOURNAL))
    assert again.get("k") == found


def _journal(folder: Path, *keys: str) -> Path:
    journal = Journal(folder / JOURNAL)
    journal.put([(key, {"from": folder.name}, Reply(text=f"{folder.name} {key}")) for key in keys])
    journal.close()
    return journal.path


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_journals_beside_are_read_and_left_alone(tmp_path: Path, kept: Kept) -> None:
    paths = [_journal(tmp_path / "a", "k1", "both"), _journal(tmp_path / "b", "k2", "both")]
    before = [path.read_bytes() for path in paths]
    journal = kept(RunFolder(tmp_path / "mine").journal())
    # The latest of them is asked first.
    for key, text in (("k1", "a k1"), ("k2", "b k2"), ("both", "b both")):
        found = journal.get(key)
        assert found is not None
        assert (found.text, found.reused) == (text, True)
    assert journal.get("k3") is None
    journal.put([("mine", {}, Reply(text="mine"))])
    journal.close()
    assert [path.read_bytes() for path in paths] == before
    for name in ("a", "b"):
        shutil.rmtree(tmp_path / name)
    alone = kept(RunFolder(tmp_path / "mine").journal())
    assert {key: told for key, told, _ in alone} == {
        "k1": {"from": "a"},
        "k2": {"from": "b"},
        "both": {"from": "b"},
        "mine": {},
    }


def test_what_is_written_beside_meanwhile_is_found(tmp_path: Path, kept: Kept) -> None:
    other = kept(RunFolder(tmp_path / "other").journal())
    mine = kept(RunFolder(tmp_path / "mine").journal())
    assert mine.get("k") is None
    other.put([("k", {}, Reply(text="now"))])
    found = mine.get("k")
    assert found is not None
    assert found.text == "now"


def test_journals_beside_can_be_read_from_another_thread(tmp_path: Path, kept: Kept) -> None:
    _journal(tmp_path / "other", "k")
    journal = kept(RunFolder(tmp_path / "mine").journal())
    found: list[Reply | None] = []
    thread = threading.Thread(target=lambda: found.append(journal.get("k")))
    thread.start()
    thread.join()
    assert [reply and reply.text for reply in found] == ["other k"]


def test_a_damaged_journal_beside_is_passed_over(tmp_path: Path, kept: Kept) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / JOURNAL).write_bytes(b"not a database at all, but long enough" * 100)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / JOURNAL).write_bytes(b"")
    (tmp_path / "c" / JOURNAL).mkdir(parents=True)
    damaged = sqlite3.connect(_journal(tmp_path / "d", "k"))
    with damaged:
        damaged.execute("UPDATE answers SET reply = ?", (b"\x00\x01",))
    damaged.close()
    _journal(tmp_path / "e", "k")
    journal = kept(RunFolder(tmp_path / "mine").journal())
    found = journal.get("k")
    assert found is not None
    assert found.text == "e k"


def test_a_locked_journal_beside_costs_little_time(tmp_path: Path, kept: Kept) -> None:
    holder = sqlite3.connect(_journal(tmp_path / "a", "k"))
    holder.execute("PRAGMA locking_mode = EXCLUSIVE")
    holder.execute("PRAGMA journal_mode = DELETE")
    holder.execute("BEGIN EXCLUSIVE")
    journal = kept(RunFolder(tmp_path / "mine").journal())
    began = time.monotonic()
    assert [journal.get(f"k{i}") for i in range(50)] == [None] * 50
    assert time.monotonic() - began < 10
    holder.close()


def test_only_the_owner_can_read(tmp_path: Path, kept: Kept) -> None:
    tmp_path.chmod(0o755)
    journal = kept(Journal(tmp_path / JOURNAL))
    journal.put([("k", {}, Reply(text="secret"))])
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert len(modes) == 3
    assert set(modes.values()) == {0o600}
    journal.close()
    (tmp_path / JOURNAL).chmod(0o644)
    Journal(tmp_path / JOURNAL).close()
    assert stat.S_IMODE((tmp_path / JOURNAL).stat().st_mode) == 0o600
    folder = RunFolder(tmp_path / "runs" / "one")
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    kept(Journal(tmp_path / "new" / JOURNAL))
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700


def test_a_damaged_journal_is_named(tmp_path: Path, kept: Kept) -> None:
    path = tmp_path / JOURNAL
    path.write_bytes(b"not a database at all, but long enough" * 100)
    with pytest.raises(InputError, match=JOURNAL):
        kept(Journal(path))
    with pytest.raises(InputError):
        kept(Journal(tmp_path))


@pytest.mark.parametrize(
    "blob", [b"\x00", b"", b"{}", bytes.fromhex("789cabae050001750 0f9".replace(" ", ""))]
)
def test_a_damaged_answer_is_named(tmp_path: Path, kept: Kept, blob: bytes) -> None:
    journal = kept(Journal(_journal(tmp_path, "k")))
    other = sqlite3.connect(journal.path)
    with other:
        other.execute("UPDATE answers SET reply = ?", (blob,))
    other.close()
    with pytest.raises(InputError, match="cannot be read"):
        journal.get("k")
    with pytest.raises(InputError, match="cannot be read"):
        list(journal)


def test_damage_in_the_middle_of_the_file_is_named(tmp_path: Path, kept: Kept) -> None:
    path = _journal(tmp_path, *(f"k{i}" for i in range(2000)))
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (size - 4096))
    with pytest.raises(InputError, match=JOURNAL):
        kept(Journal(path)).get("k7")


def test_using_a_closed_journal_is_an_error_not_a_crash(tmp_path: Path, kept: Kept) -> None:
    journal = kept(Journal(tmp_path / JOURNAL))

    def write() -> None:
        number = 0
        while True:
            number += 1
            journal.put([(str(number), {}, Reply(text="x" * 100))])

    errors: list[Exception] = []

    def until_closed() -> None:
        try:
            write()
        except InputError as error:
            errors.append(error)

    threads = [threading.Thread(target=until_closed) for _ in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(0.05)
    journal.close()
    for thread in threads:
        thread.join(10)
    assert len(errors) == 3


def test_a_run_folder(tmp_path: Path, kept: Kept) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.write("summary.json", {"größe": 1})
    folder.run.write_text("x")
    assert json.loads((tmp_path / "run" / "summary.json").read_text("utf-8")) == {"größe": 1}
    kept(folder.journal()).put([("k", {}, Reply(text="x"))])
    folder.check("method")
    folder.write("manifest.json", {"generation": {}})
    folder.check("generation")
    with pytest.raises(InputError, match="another command"):
        folder.check("method")
    assert len(kept(RunFolder(tmp_path / "run").journal())) == 1
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="--out"):
        RunFolder(tmp_path / "file")


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_whole(path, "first")
    write_whole(path, "second")
    assert path.read_text() == "second"
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "\ud800")
    assert _contents(tmp_path) == {"a.json": b"second"}


def _write_many(path: Path, name: str, count: int) -> None:
    """Runs in a process of its own: shares half of its keys with the others."""
    journal = Journal(path)
    for number in range(count):
        key = f"{name if number % 2 else 'shared'}-{number}"
        journal.put([(key, {"by": name}, Reply(text=key))])
    journal.close()


def test_several_processes_write_at_once(tmp_path: Path, kept: Kept) -> None:
    path = tmp_path / JOURNAL
    context = get_context("forkserver")
    names = ("a", "b", "c")
    children = [context.Process(target=_write_many, args=(path, name, 200)) for name in names]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0, 0, 0]
    journal = kept(Journal(path))
    assert len(journal) == 100 + 3 * 100
    assert all(reply.text == key for key, _, reply in journal)


RUN = """
import asyncio, json, os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tests.test_engine import Slow, collect, collection, reranking
from llmrank.backends.wrappers import Cached
from llmrank.store import Journal


class Logged(Slow):
    async def answer(self, requests):
        with open(folder / "sent", "a") as log:
            log.writelines(f"{request.key(self.identity)}\\n" for request in requests)
        return await super().answer(requests)


def run():
    topics, qrels = collection(6, 40)
    backend = Logged(qrels, 0.015)
    work = collect(Cached(backend, Journal(folder / "journal.sqlite")), plans(topics))
    done = asyncio.run(work)
    results = {key: result for key, (result, _) in sorted(done.items())}
    # Whole or not at all, as this process may be killed here too.
    (folder / "draft").write_text(json.dumps(results))
    (folder / "draft").replace(folder / "done")


def plans(topics):
    plans = [*reranking("sliding(window=6, stride=2)", topics), *reranking("yesno", topics)]
    return [(number, plan) for number, (_, plan) in enumerate(plans)]


for line in sys.stdin:
    folder = Path(line.strip())
    if not (child := os.fork()):
        run()
        os._exit(0)
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""


class Runs:
    """Real child processes that run an engine with a journal, forked from one that is warm."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, "-c", RUN, str(Path(__file__).parents[1])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, folder: Path, kill_after: float | None = None) -> int:
        """Start a run, kill it after some seconds, and return its wait status."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(f"{folder}\n")
        self._server.stdin.flush()
        child = int(self._server.stdout.readline())
        if kill_after is not None:
            time.sleep(kill_after)
            if not (folder / "done").exists():
                os.kill(child, 9)
        return int(self._server.stdout.readline())

    def close(self) -> None:
        self._server.communicate()


@pytest.fixture
def runs() -> Iterator[Runs]:
    server = Runs()
    yield server
    server.close()


def _committed(folder: Path) -> set[str]:
    if not (folder / JOURNAL).exists():
        return set()
    with closing(sqlite3.connect(folder / JOURNAL)) as db:
        try:
            return {key for (key,) in db.execute("SELECT key FROM answers")}
        except sqlite3.OperationalError:  # killed before there was a table
            return set()


def _sent(folder: Path) -> list[str]:
    log = folder / "sent"
    return log.read_text().split() if log.exists() else []


@pytest.mark.slow
def test_a_killed_run_resumes_and_never_pays_twice(tmp_path: Path, runs: Runs) -> None:
    random, kills, resumed = Random(3), 0, 0
    whole = tmp_path / "whole"
    whole.mkdir()
    began = time.monotonic()
    assert runs.run(whole) == 0
    longest = time.monotonic() - began
    expected = (whole / "done").read_text()
    everything = set(_sent(whole))
    for number in range(200):
        if kills >= 30:
            break
        folder = tmp_path / f"killed{number}"
        folder.mkdir()
        while not (folder / "done").exists():
            before, sent = _committed(folder), len(_sent(folder))
            status = runs.run(folder, random.uniform(0, 0.6 * longest))
            assert status in (0, 9)
            kills += status == 9
            resumed += bool(before)
            assert not before & set(_sent(folder)[sent:])
        assert (folder / "done").read_text() == expected
        assert _committed(folder) == everything == set(_sent(folder))
    assert kills >= 30
    assert resumed >= 10
