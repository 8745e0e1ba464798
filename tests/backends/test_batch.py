from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest

from llmrank.backends import connect, connect_encoder
from llmrank.backends._batches import Line, parts
from llmrank.backends.batch import BatchBackend
from llmrank.backends.openai import OpenAIBackend
from llmrank.backends.wrappers import Cached, Capped, Caps, Meter, Metered
from llmrank.engine import Engine
from llmrank.errors import BackendError, CapabilityError, SpecError
from llmrank.plan import Write
from llmrank.prompts import PromptSet
from llmrank.request import Message, Params, Reply, Request
from llmrank.rerank import Method
from llmrank.store import Journal
from llmrank.types import Candidate, Document, Ordering, Query, Status, Tally, Usage
from tests.backends.batch_server import (
    BatchServer,
    Body,
    answered,
    error,
    expires,
    loses,
    serve_batches,
)

T = TypeVar("T")
ASK = Write("test", ())
FORMS = {"yes": ("Yes", "yes"), "no": ("No", "no")}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[BatchServer]:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    with serve_batches() as found:
        yield found


def text(words: str) -> Request:
    turns = (Message("user", words),)
    return Request(ask=ASK, want="text", messages=turns, params=Params(max_tokens=9))


def texts(count: int) -> list[Request]:
    return [text(f"say word{i}") for i in range(count)]


def plain(words: str) -> Request:
    return Request(ask=ASK, want="text", prompt=words, params=Params(max_tokens=9))


def labels(words: str, *, chat: bool = True) -> Request:
    turns = (Message("user", words),) if chat else ()
    prompt = "" if chat else words
    return Request(ask=ASK, want="labels", messages=turns, prompt=prompt, labels=FORMS)


def vectors(*words: str) -> Request:
    return Request(ask=ASK, want="vectors", texts=words)


def made(server: BatchServer, **options: Any) -> BatchBackend:  # noqa: ANN401
    given = {"base_url": server.url, "timeout": 5, "poll": 0.01, "dialect": "openai", **options}
    return BatchBackend("m", **given)


def using(backend: T, use: Callable[[T], Awaitable[list[Reply]]]) -> list[Reply]:
    async def work() -> list[Reply]:
        try:
            return await use(backend)
        finally:
            await backend.close()  # type: ignore[attr-defined]

    return asyncio.run(work())


def answers(server: BatchServer, *requests: Request, **options: Any) -> list[Reply]:  # noqa: ANN401
    return using(made(server, **options), lambda backend: backend.answer(requests))


def sizes(server: BatchServer) -> list[int]:
    return [len(server.lines(number)) for number in server.batches]


MIXED = [
    *texts(4),
    plain("go on with"),
    plain("go on without"),
    labels("is it so?"),
    labels("is it not?"),
    labels("so?", chat=False),
    labels("not?", chat=False),
    vectors("a", "bbb"),
    vectors("cc"),
]


def test_replies_are_those_of_the_live_backend_in_order(server: BatchServer) -> None:
    live = OpenAIBackend("m", base_url=server.url, dialect="openai")
    expected = using(live, lambda backend: backend.answer(MIXED))
    server.live.clear()
    found = answers(server, *MIXED)
    assert [replace(r, vectors=None, seconds=0.0) for r in found[1:]] == [
        replace(r, vectors=None, seconds=0.0) for r in expected[1:]
    ]
    assert [r.text for r in found[:6]] == ["word0", "word1", "word2", "word3", "with", "without"]
    assert found[6].label_logprobs == {"Yes": -0.2, "No": -2.0}
    assert found[1].usage == Usage(30, 2, 16, 1)
    assert found[1].seconds == 0
    assert [r.vectors.tolist() for r in found[10:] if r.vectors is not None] == [
        [[1, 1], [3, 1]],
        [[2, 1]],
    ]
    # The first of each kind was asked live.
    assert len(server.live) == 5
    assert sizes(server) == [4, 2, 1]


def test_a_line_is_what_the_live_backend_sends(server: BatchServer) -> None:
    request = text("say ä\u2028b")
    answers(server, *texts(1), request)
    ((_, first),) = server.live
    ((line,),) = (server.lines(number) for number in server.batches)
    assert line == {
        "custom_id": request.key(f"openai:m@{server.url}"),
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {**first, "messages": [{"role": "user", "content": "say ä\u2028b"}]},
    }
    (batch,) = server.batches.values()
    assert batch["metadata"] == {"llmrank": line["custom_id"][:16]}


def test_text_with_other_line_ends_comes_back_whole(server: BatchServer) -> None:
    said = "one\u2028two\x85three\nfour"
    server.answers = lambda path, body: (200, {**answered(path, body)[1], **_said(said)})
    assert [reply.text for reply in answers(server, *texts(3))] == [said] * 3


def _said(words: str) -> dict[str, Any]:
    return {"choices": [{"message": {"content": words}, "finish_reason": "stop"}]}


def test_every_failed_line_has_its_typed_outcome(server: BatchServer) -> None:
    broken: dict[str, tuple[int, Body]] = {
        "long": error(400, "maximum context length is 9 tokens", "context_length_exceeded"),
        "policy": error(400, "content management policy", "content_filter"),
        "refuses": (200, {"choices": [{"message": {"content": None, "refusal": "no"}}]}),
        "empty": (200, {"choices": []}),
        "error": (200, {"error": {"message": "overloaded"}}),
        "busy": error(500, "internal"),
        "html": (200, "<html>"),  # type: ignore[dict-item]
    }

    def answer(path: str, body: Body) -> tuple[int, Body]:
        return broken.get(body["messages"][-1]["content"], answered(path, body))

    server.answers = answer
    replies = answers(server, text("fine"), *map(text, broken), text("good"))
    found = dict(zip(("fine", *broken, "good"), replies, strict=True))
    assert (found["fine"].text, found["good"].text) == ("fine", "good")
    assert "does not fit the model's context" in found["long"].error
    assert (found["policy"].finish, found["policy"].error) == ("content_filter", "")
    assert found["refuses"].finish == "refusal"
    assert "holds no choices" in found["empty"].error
    assert found["busy"].transient
    assert found["error"].transient
    assert found["html"].error
    assert not any(found[name].transient for name in ("long", "empty"))
    # What may pass was asked a second time, and nothing else.
    assert sizes(server)[1] == 3


def test_what_fails_in_passing_is_asked_again(server: BatchServer) -> None:
    seen: set[str] = set()

    def answer(path: str, body: Body) -> tuple[int, Body]:
        words = body["messages"][-1]["content"]
        if words.endswith("3") and words not in seen:
            seen.add(words)
            return error(503, "overloaded")
        return answered(path, body)

    server.answers = answer
    replies = answers(server, *texts(6))
    assert [reply.text for reply in replies] == [f"word{i}" for i in range(6)]
    assert sizes(server) == [5, 1]


def test_what_expired_is_asked_again(server: BatchServer) -> None:
    server.ends = [expires(3)]
    replies = answers(server, *texts(6))
    assert [reply.text for reply in replies] == [f"word{i}" for i in range(6)]
    assert (sizes(server), server.paid) == ([5, 3], 6)


def test_what_expires_again_is_an_error_that_may_pass(server: BatchServer) -> None:
    server.ends = [expires(3), expires(1)]
    *good, bad = sorted(answers(server, *texts(6)), key=lambda reply: reply.error)
    assert not any(reply.error for reply in good)
    assert "completion window expired" in bad.error
    assert bad.transient


@pytest.mark.parametrize(("status", "again"), [("completed", True), ("cancelled", False)])
def test_a_line_without_an_answer(server: BatchServer, status: str, again: bool) -> None:
    server.ends = [loses(2, status)]
    replies = answers(server, *texts(6))
    assert sizes(server) == ([5, 2] if again else [5])
    lost = [reply.error for reply in replies if reply.error]
    assert len(lost) == (0 if again else 2)
    assert all("batch0 is cancelled and holds no answer" in told for told in lost)


def test_more_than_may_wait_goes_up_in_halves(server: BatchServer) -> None:
    server.most = 2
    replies = answers(server, *texts(9))
    assert [reply.text for reply in replies] == [f"word{i}" for i in range(9)]
    done = [row for row in server.batches.values() if row["status"] == "completed"]
    assert [row["request_counts"]["total"] for row in done] == [2, 2, 2, 2]


def test_a_batch_that_is_refused_ends_the_run(server: BatchServer) -> None:
    server.most = 0
    with pytest.raises(BackendError, match=r"refused the batch batch.*Enqueued token limit"):
        answers(server, *texts(3))


def test_equal_requests_are_one_line(server: BatchServer) -> None:
    replies = answers(server, *texts(2), *texts(2))
    assert [reply.text for reply in replies] == ["word0", "word1"] * 2
    assert server.paid == 2


def test_more_lines_than_a_batch_takes(server: BatchServer) -> None:
    replies = answers(server, *texts(8), lines=3, pilot=False)
    assert [reply.text for reply in replies] == [f"word{i}" for i in range(8)]
    assert sizes(server) == [3, 3, 2]
    assert not server.live


def test_parts_keep_lines_bytes_and_texts_under_their_limits() -> None:
    async def work() -> None:
        answer: asyncio.Future[Any] = asyncio.Future()
        lines = {str(i): Line("/x", b"x" * (i % 7), 1 + i % 3, answer) for i in range(200)}
        found = list(parts(lines, 10, 20))
        assert [key for part in found for key in part] == list(lines)
        for part, after in zip(found, [*found[1:], None], strict=True):
            size = sum(line.size for line in part.values())
            length = sum(len(line.content) for line in part.values())
            assert size <= 10
            assert length <= 20
            if after:
                first = next(iter(after.values()))
                assert size + first.size > 10 or length + len(first.content) > 20
        alone = list(parts({"big": Line("/x", b"x" * 99, 99, answer)}, 10, 20))
        assert [list(part) for part in alone] == [["big"]]

    asyncio.run(work())


def refuses_temperature(path: str, body: Body) -> tuple[int, Body]:
    if "temperature" in body:
        return error(400, "Unsupported parameter: 'temperature' is not supported")
    return answered(path, body)


@pytest.mark.parametrize(("pilot", "batches"), [(True, [5]), (False, [6, 6])])
def test_a_parameter_that_is_refused_is_learnt_from_one_request(
    server: BatchServer, pilot: bool, batches: list[int]
) -> None:
    server.answers = refuses_temperature
    replies = answers(server, *texts(6), pilot=pilot)
    assert [reply.text for reply in replies] == [f"word{i}" for i in range(6)]
    assert sizes(server) == batches


def test_a_model_without_log_probabilities_shows_before_any_batch(server: BatchServer) -> None:
    server.answers = lambda path, body: answered(path, {**body, "logprobs": None})
    with pytest.raises(CapabilityError, match="returns no log-probabilities"):
        answers(server, *(labels(f"is it {i}?") for i in range(5)))
    assert not server.batches


def test_a_wrong_key_shows_before_any_batch(server: BatchServer) -> None:
    server.answers = lambda *_: error(401, "bad key")
    with pytest.raises(BackendError, match="check OPENAI_API_KEY"):
        answers(server, *texts(3))
    assert not server.batches


def test_a_server_without_batches_is_a_clear_error(server: BatchServer) -> None:
    server.told["GET /batches"] = [error(404, "Not Found")]
    with pytest.raises(CapabilityError, match="has no batches"):
        answers(server, *texts(3))
    assert not server.live


def test_answers_that_came_are_kept_where_another_is_refused(server: BatchServer) -> None:
    def answer(path: str, body: Body) -> tuple[int, Body]:
        if "word2" in str(body):
            return error(429, "no credit", "insufficient_quota")
        return answered(path, body)

    server.answers = answer
    replies = answers(server, *texts(4))
    assert [reply.text for reply in replies] == ["word0", "word1", "", "word3"]
    assert "no credit left" in replies[2].error


def test_a_batch_whose_making_was_not_heard_of_is_not_made_twice(server: BatchServer) -> None:
    server.told["POST /batches"] = [None]
    replies = answers(server, *texts(4))
    assert not any(reply.error for reply in replies)
    assert (len(server.batches), server.paid) == (1, 4)


def test_trouble_while_looking_and_downloading_passes(server: BatchServer) -> None:
    busy = error(503, "busy")
    server.told = {
        "GET /batches/batch0": [busy, None],
        "POST /files": [busy],
        "GET /files/file1/content": [busy],
    }
    replies = answers(server, *texts(4))
    assert not any(reply.error for reply in replies)
    assert server.paid == 4


async def cancelled(backend: BatchBackend, requests: list[Request], server: BatchServer) -> None:
    """Ask, and cancel once the batch is in progress."""
    task = asyncio.create_task(backend.answer(requests))
    while not any(row["status"] == "in_progress" for row in server.batches.values()):
        assert not task.done()
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await backend.close()
    left = asyncio.all_tasks() - {asyncio.current_task()}
    assert not left


def test_a_cancelled_batch_goes_on_and_is_taken_up(
    server: BatchServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.held = True
    asyncio.run(cancelled(made(server), texts(6), server))
    assert "batch batch0 goes on at" in caplog.text
    server.held = False
    with caplog.at_level(logging.INFO):
        replies = answers(server, *texts(6))
    assert [reply.text for reply in replies] == [f"word{i}" for i in range(6)]
    assert "batch batch0: taken up again" in caplog.text
    assert "batch batch0: completed, 5 of 5 answered, 0 failed" in caplog.text
    # All but the first, which was asked live both times: it was in no batch.
    assert (sizes(server), server.paid) == ([5], 7)


def test_only_what_earlier_batches_lack_is_asked(server: BatchServer) -> None:
    answers(server, *texts(20), pilot=False)
    server.ends = [expires(2)]
    other = [text(f"say other{i}") for i in range(5)]
    answers(server, *other[:3], pilot=False)
    before = server.paid
    wanted = [*texts(30)[10:], *other]
    replies = answers(server, *wanted, pilot=False)
    assert [reply.text for reply in replies] == [
        *(f"word{i}" for i in range(10, 30)),
        *(f"other{i}" for i in range(5)),
    ]
    assert server.paid - before == 10 + 2


def test_batches_of_others_are_left_alone(server: BatchServer) -> None:
    answers(server, *texts(4), pilot=False)
    server.batches["batch0"]["metadata"] = None
    downloads = len(server.asked)
    answers(server, *texts(4), pilot=False)
    assert "GET /files/file1/content" not in server.asked[downloads:]
    server.batches["batch1"]["metadata"] = {"llmrank": "0000000000000000"}
    answers(server, *texts(4), pilot=False)
    assert sizes(server) == [4, 4, 4]


def test_resume_can_be_switched_off(server: BatchServer) -> None:
    answers(server, *texts(4), pilot=False)
    answers(server, *texts(4), pilot=False, resume=False)
    assert sizes(server) == [4, 4]


def test_files_that_are_gone_are_asked_again(server: BatchServer) -> None:
    answers(server, *texts(4), pilot=False)
    del server.files["file1"]
    replies = answers(server, *texts(4), pilot=False)
    assert not any(reply.error for reply in replies)
    assert sizes(server) == [4, 4]


def test_a_long_list_of_batches_is_read_to_its_end(server: BatchServer) -> None:
    server.page = 2
    for i in range(7):
        answers(server, text(f"say word{i}"), pilot=False)
    replies = answers(server, *texts(7), pilot=False)
    assert [reply.text for reply in replies] == [f"word{i}" for i in range(7)]
    assert sizes(server) == [1] * 7


SCRIPT = """
import asyncio, sys
from pathlib import Path
from llmrank.backends.batch import BatchBackend
from llmrank.backends.wrappers import Cached
from llmrank.plan import Write
from llmrank.request import Message, Params, Request
from llmrank.store import Journal

url, path = sys.argv[1:]
backend = BatchBackend("m", base_url=url, poll=0.01, dialect="openai")
turns = [(Message("user", f"say word{i}"),) for i in range(8)]
params = Params(max_tokens=9)
asks = [Request(ask=Write("test", ()), want="text", messages=m, params=params) for m in turns]
asyncio.run(Cached(backend, Journal(Path(path))).answer(asks))
"""


def test_a_killed_process_pays_nothing_twice(server: BatchServer, tmp_path: Path) -> None:
    server.held = True
    path = tmp_path / "journal.sqlite"
    command = [sys.executable, "-c", SCRIPT, server.url, str(path)]
    with subprocess.Popen(command) as process:
        deadline = time.monotonic() + 60
        while not any(row["status"] == "in_progress" for row in server.batches.values()):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
    server.held = False
    for _ in range(2):
        backend = Cached(made(server), Journal(path))
        replies = using(backend, lambda backend: backend.answer(texts(8)))
        assert [reply.text for reply in replies] == [f"word{i}" for i in range(8)]
        # Eight requests; the one asked live was paid for by both processes.
        assert (sizes(server), server.paid) == ([7], 9)
    assert all(reply.reused for reply in replies)


def test_the_journal_serves_live_and_batch_alike(server: BatchServer, tmp_path: Path) -> None:
    live = OpenAIBackend("m", base_url=server.url, dialect="openai")
    path = tmp_path / "journal.sqlite"
    first = using(Cached(live, Journal(path)), lambda backend: backend.answer(texts(4)))
    again = using(Cached(made(server), Journal(path)), lambda backend: backend.answer(texts(4)))
    assert [reply.text for reply in again] == [reply.text for reply in first]
    assert all(reply.reused for reply in again)
    assert not server.batches


def test_at_a_deadline_requests_are_unasked_and_the_batch_goes_on(
    server: BatchServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.held = True
    meter = Meter()
    inner = Metered(made(server, pilot=False), meter)
    capped = Capped(inner, Caps(seconds=2.0), lambda words: len(words.split()))
    replies = using(capped, lambda backend: backend.answer(texts(4)))
    assert [reply.unasked for reply in replies] == ["the deadline of 2 s"] * 4
    assert meter.cancelled == 4
    assert "goes on at" in caplog.text


def test_all_queries_of_a_round_go_up_in_one_batch(server: BatchServer) -> None:
    queries = [Query(f"q{i}", f"query {i}") for i in range(6)]
    documents = [Candidate(Document(f"d{i}", f"text {i}"), 1.0 - i / 10) for i in range(10)]
    found: dict[str, Tally] = {}

    def finished(key: str, result: Ordering, tally: Tally) -> None:
        del result
        found[key] = tally

    async def run(backend: BatchBackend) -> list[Reply]:
        plans = [(query.id, Method("yesno").plan(query, documents)) for query in queries]
        await Engine(backend, PromptSet()).run(plans, finished)
        return []

    using(made(server), run)
    assert [tally.outcomes for tally in found.values()] == [{Status.OK: 10}] * 6
    assert (sizes(server), len(server.live)) == ([59], 1)


def test_a_probe_of_it_goes_to_the_server_itself(server: BatchServer) -> None:
    backend = made(server)

    async def ask(_: BatchBackend) -> list[Reply]:
        return [await backend.text(text("hello there"))]

    (reply,) = using(backend, ask)
    assert (reply.text, len(server.live), len(server.batches)) == ("there", 1, 0)


def test_two_calls_at_once_do_not_meet(server: BatchServer) -> None:
    backend = made(server, pilot=False)

    async def both(_: BatchBackend) -> list[Reply]:
        first, second = await asyncio.gather(
            backend.answer(texts(3)), backend.answer([text(f"say other{i}") for i in range(3)])
        )
        return [*first, *second]

    found = [reply.text for reply in using(backend, both)]
    assert found == ["word0", "word1", "word2", "other0", "other1", "other2"]


@pytest.mark.parametrize("options", [{"poll": 0.0}, {"lines": 0}, {"lines": 50_001}])
def test_options_out_of_range_are_refused(server: BatchServer, options: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match="a batch needs"):
        made(server, **options)


def test_a_text_that_cannot_be_sent_is_its_own_error(server: BatchServer) -> None:
    replies = answers(server, *texts(2), text("say \ud800"), pilot=False)
    assert [reply.text for reply in replies[:2]] == ["word0", "word1"]
    assert "lone surrogates" in replies[2].error


def test_nothing_to_answer(server: BatchServer) -> None:
    assert answers(server) == []
    assert not server.batches


def test_metadata_stays_within_its_limit(server: BatchServer) -> None:
    answers(server, *texts(100), pilot=False)
    (batch,) = server.batches.values()
    assert len(batch["metadata"]["llmrank"]) == 509
    assert json.dumps(batch["metadata"])


def test_it_is_named_as_a_model_and_as_an_encoder(server: BatchServer) -> None:
    named = connect("batch:m,lines=7,pilot=false", base_url=server.url)
    assert isinstance(named, BatchBackend)
    assert named.identity == f"openai:m@{server.url}"
    assert isinstance(connect_encoder("batch:m", base_url=server.url), BatchBackend)
