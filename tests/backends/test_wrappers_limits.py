from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from random import Random
from typing import NamedTuple

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from llmrank.backends.openai import OpenAIBackend
from llmrank.backends.wrappers import (
    Capped,
    Caps,
    Limited,
    Meter,
    Metered,
    Minute,
    Retrying,
    Wrapper,
)
from llmrank.errors import BackendError, InputError
from llmrank.request import Backend, Reply, Request, Want
from llmrank.types import Usage
from tests.backends.fakes import Fake, VirtualLoop, one, quiet, request
from tests.effort import examples
from tests.servers import Behaviour, Body, chat, serve

BUSY = Reply(error="HTTP 429", transient=True, throttled=True)


class Busy:
    """Answers after a while; refuses at once what comes above `most` at the same time."""

    identity = "busy"
    wants: frozenset[Want] = frozenset({"text"})
    batch = 1

    def __init__(
        self,
        most: int,
        seconds: Callable[[int], float] = lambda _: 0.5,
        refusal: Reply = BUSY,
        timeout: float = 1e9,
    ) -> None:
        self.most, self.seconds, self.refusal, self.timeout = most, seconds, refusal, timeout
        self.under_way = self.peak = self.refused = self.done = self.late = 0
        self.sent: list[float] = []
        self.random = Random(0)

    async def answer(self, requests: Sequence[Request]) -> list[Reply]:
        """One answer, refusal or timeout."""
        (item,) = requests
        self.sent.append(asyncio.get_running_loop().time())
        if self.under_way >= self.most:
            self.refused += 1
            await asyncio.sleep(0.002)
            return [self.refusal]
        self.under_way += 1
        self.peak = max(self.peak, self.under_way)
        try:
            takes = self.seconds(self.under_way) * self.random.lognormvariate(0, 0.3)
            await asyncio.sleep(min(takes, self.timeout))
        finally:
            self.under_way -= 1
        if takes > self.timeout:
            self.late += 1
            return [BUSY]
        self.done += 1
        return [Reply(text=item.prompt)]

    async def close(self) -> None:
        """Nothing to close."""


async def ask_all(backend: Backend, total: int, at_once: int) -> float:
    """Ask so many questions as the engine does; the seconds that took."""
    began = asyncio.get_running_loop().time()
    numbers = iter(range(total))

    async def work() -> None:
        for number in numbers:
            (reply,) = await backend.answer([request(str(number))])
            assert reply.text == str(number), reply

    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(work())
    return asyncio.get_running_loop().time() - began


# In a minute


class Asked(NamedTuple):
    """One request of a property test: when it came, what it was expected to take, and took."""

    at: float
    expected: int
    used: int


class Record(NamedTuple):
    """When it was sent, and answered."""

    asked: Asked
    sent: float
    answered: float


def takes(number: int) -> float:
    """Seconds until the answer to a request; no two answers come at the same moment."""
    return 3 + math.sqrt(number + 2) / 100


asked = st.builds(
    Asked,
    at=st.sampled_from([0.0, 0.0, 0.5, 10.0, 30.0, 59.0, 60.0, 200.0]),
    expected=st.integers(1, 40),
    used=st.integers(0, 60),
)


async def send_all(work: Sequence[Asked], minute: Minute) -> list[Record]:
    """Ask everything at its time; what was sent, in the order of sending."""
    records: list[Record] = []

    async def note(item: Request, _: int) -> Reply:
        number = int(item.target)
        mine, now = work[number], asyncio.get_running_loop().time()
        records.append(Record(mine, now, now + takes(number)))
        await asyncio.sleep(takes(number))
        return Reply(text="x", usage=Usage(mine.used))

    limited = Limited(Fake(note), 1000, least=1000, minute=minute)

    async with asyncio.TaskGroup() as group:
        for number, one in enumerate(work):
            await asyncio.sleep(one.at - asyncio.get_running_loop().time())
            ask = request("x").ask
            item = Request(ask=ask, want="likelihood", prompt="x", target=str(number))
            group.create_task(limited.answer([item]))
    return records


def counts(record: Record, at: float) -> int:
    """Tokens that an earlier request counts for at a time."""
    if record.sent + 60 <= at:
        return 0
    return record.asked.used if record.answered <= at else record.asked.expected


def allowed(
    before: Sequence[Record], mine: Asked, at: float, rpm: int | None, tpm: int | None
) -> bool:
    """Whether a request may be sent at a time, by the definition."""
    recent = [record for record in before if record.sent + 60 > at]
    if rpm is not None and len(recent) >= rpm:
        return False
    held = sum(counts(record, at) for record in recent)
    return tpm is None or not recent or held + mine.expected <= tpm


@examples(80)
@given(
    st.lists(asked, max_size=25),
    st.none() | st.integers(1, 8),
    st.none() | st.integers(20, 90),
)
def test_a_minute_is_never_overfull_nobody_overtakes_and_nobody_waits_for_nothing(
    drawn: list[Asked], rpm: int | None, tpm: int | None
) -> None:
    work = sorted(drawn, key=lambda one: one.at)
    # The text of request i is "x" and its number; together they count as expected.
    sizes = iter(work)
    minute = Minute(rpm=rpm, tpm=tpm, count=lambda text: next(sizes).expected if text == "x" else 0)
    records = quiet(send_all(work, minute), VirtualLoop)
    assert [record.asked for record in records] == work
    for number, (mine, sent, _) in enumerate(records):
        before = records[:number]
        assert allowed(before, mine, sent + 1e-6, rpm, tpm)
        free_from = max([mine.at, *(record.sent for record in before)])
        changes = [free_from]
        changes += [at for one in before for at in (one.answered, one.sent + 60)]
        for earlier in changes:
            if free_from <= earlier < sent - 1e-6:
                assert not allowed(before, mine, earlier + 1e-6, rpm, tpm)


def test_a_minute_is_full_to_the_brim() -> None:
    server = Busy(10_000)
    limited = Limited(server, 64, minute=Minute(rpm=50))
    assert quiet(ask_all(limited, 500, 64), VirtualLoop) == pytest.approx(540.5, abs=1.5)
    windows = [sum(t <= at < t + 60 for at in server.sent) for t in server.sent]
    assert max(windows) == 50


def test_a_failed_request_counts_with_what_was_expected() -> None:
    minute = Minute(tpm=100, count=len)
    sent = minute.send(0.0, 80)
    minute.settle(sent, Reply(error="lost"))
    assert minute.when(1.0, 30) == 60.0
    minute.settle(sent, Reply(text="x", usage=Usage(10, 5)))
    assert minute.when(1.0, 30) == 1.0
    assert minute.when(60.0, 1000) == 60.0


def test_what_comes_back_after_its_minute_changes_nothing() -> None:
    minute = Minute(tpm=100, count=len)
    late = minute.send(0.0, 80)
    assert minute.when(60.0, 10) == 60.0
    minute.send(60.0, 10)
    minute.settle(late, Reply(text="x", usage=Usage(90)))
    assert minute.when(60.0, 90) == 60.0
    assert minute.when(60.0, 91) == 120.0


def test_limits_that_cannot_be_kept_are_refused() -> None:
    for wrong in (
        lambda: Minute(rpm=0),
        lambda: Minute(tpm=-1, count=len),
        lambda: Minute(tpm=100),
        lambda: Limited(Fake(), 0),
        lambda: Limited(Fake(), 4, least=5),
        lambda: Limited(Fake(), 4, least=0),
    ):
        with pytest.raises(InputError):
            wrong()


# At once


@pytest.mark.parametrize(("most", "refusals"), [(1, 0.05), (8, 0.03), (24, 0.02), (64, 0.0)])
def test_the_number_at_once_settles_where_the_server_refuses(most: int, refusals: float) -> None:
    server = Busy(most)
    took = quiet(ask_all(Retrying(Limited(server, 64)), 2000, 64), VirtualLoop)
    best = 2000 * 0.5 * 1.046 / most
    assert took < 1.1 * best
    assert server.refused <= refusals * 2000


def test_a_fixed_number_stays() -> None:
    server = Busy(8)
    limited = Limited(server, 12, least=12)

    async def main() -> None:
        with pytest.raises(ExceptionGroup):
            await ask_all(Retrying(limited), 300, 12)

    quiet(main(), VirtualLoop)
    assert limited.at_once == 12
    assert server.refused > 12


def test_a_server_that_gets_slow_above_a_number_is_kept_near_it() -> None:
    def seconds(under_way: int) -> float:
        return 0.3 * max(1.0, under_way / 16) ** 3

    server = Busy(1000, seconds, timeout=5.0)
    took = quiet(ask_all(Retrying(Limited(server, 128)), 2000, 128), VirtualLoop)
    assert server.late < 160
    assert took < 5 * 2000 * 0.3 / 16


def test_the_number_grows_again_when_the_server_takes_more() -> None:
    async def main() -> None:
        server = Busy(4)
        limited = Limited(server, 32)
        await ask_all(Retrying(limited), 300, 32)
        assert limited.at_once <= 5
        server.most, server.peak = 1000, 0
        await ask_all(Retrying(limited), 1500, 32)
        assert (limited.at_once, server.peak) == (32, 32)

    quiet(main(), VirtualLoop)


def test_refusals_of_one_round_trip_are_one_cut() -> None:
    async def main() -> None:
        server = Busy(24)
        limited = Limited(server, 32)
        await asyncio.gather(*(one(limited, str(i)) for i in range(32)))
        assert server.refused == 8
        assert limited.at_once == 24

    quiet(main(), VirtualLoop)


def test_what_was_not_needed_does_not_grow() -> None:
    async def main() -> None:
        limited = Limited(Busy(1000), 500)
        await ask_all(limited, 200, 3)
        assert limited.at_once == 32
        await ask_all(limited, 2000, 500)
        assert limited.at_once == 500

    quiet(main(), VirtualLoop)


def test_errors_of_the_server_are_no_reason_to_ask_less_at_once() -> None:
    async def some(item: Request, before: int) -> Reply:
        await asyncio.sleep(0.1)
        if before == 0 and int(item.prompt) % 3 == 0:
            return Reply(error="HTTP 500", transient=True)
        return Reply(text=item.prompt)

    async def main() -> None:
        limited = Limited(Fake(some), 16)
        await ask_all(Retrying(limited), 300, 16)
        assert limited.at_once == 16

    quiet(main(), VirtualLoop)


# Pauses


@pytest.mark.parametrize("error", ["HTTP 429", ""])
def test_nobody_sends_while_the_server_wants_to_be_left_alone(error: str) -> None:
    sent: list[float] = []

    async def behaviour(item: Request, before: int) -> Reply:
        sent.append(asyncio.get_running_loop().time())
        await asyncio.sleep(0.01)
        if item.prompt == "3" and not before:
            return Reply(
                text="" if error else "3", error=error, transient=bool(error), retry_after=20.0
            )
        await asyncio.sleep(1.0)
        return Reply(text=item.prompt)

    took = quiet(ask_all(Retrying(Limited(Fake(behaviour), 8)), 100, 8), VirtualLoop)
    assert not [at for at in sent if 0.01 < at < 20]
    assert sum(at >= 20 for at in sent) >= 92
    # The wait for the server and the wait before asking again are the same wait.
    assert 20 < took < 20 + 100 / 5


def test_the_server_may_not_stop_everything_for_an_hour() -> None:
    async def first_refused(item: Request, before: int) -> Reply:
        await asyncio.sleep(0)
        return (
            Reply(text=item.prompt)
            if before
            else Reply(error="429", transient=True, retry_after=3600)
        )

    limited = Limited(Fake(first_refused), 8, longest=60)
    assert quiet(ask_all(Retrying(limited), 1, 1), VirtualLoop) == pytest.approx(60)


def test_where_the_server_refuses_one_alone_all_wait_ever_longer() -> None:
    server = Busy(0)

    async def main() -> None:
        with pytest.raises(BackendError, match="busy answered nothing but errors for 30"):
            await asyncio.gather(*(one(retrying, str(i)) for i in range(16)))
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
            await asyncio.wait([task])

    retrying = Retrying(Limited(server, 16))
    quiet(main(), VirtualLoop)
    assert server.sent[:16] == [0.0] * 16
    between = [b - a for a, b in zip(server.sent[16:], server.sent[17:], strict=False)]
    assert min(between) > 0.4
    assert len(server.sent) < 16 + 300 / 4


# Leaving


@examples(40)
@given(st.lists(st.tuples(st.floats(0, 3), st.floats(0.01, 3)), max_size=30), st.integers(1, 4))
def test_who_is_cancelled_takes_nobodys_place(
    given_up: list[tuple[float, float]], at_once: int
) -> None:
    async def main() -> None:
        server = Busy(at_once)
        limited = Limited(server, at_once, least=at_once)

        async def impatient(start: float, patience: float) -> None:
            await asyncio.sleep(start)
            try:
                async with asyncio.timeout(patience):
                    await one(limited, "x")
            except TimeoutError:
                return

        await asyncio.gather(*(impatient(*one) for one in given_up))
        assert server.under_way == server.refused == 0
        await ask_all(limited, 20, 20)
        assert server.peak == at_once

    quiet(main(), VirtualLoop)


def test_who_is_let_in_and_cancelled_at_the_same_moment_gives_the_place_back() -> None:
    async def main() -> None:
        limited = Limited(Busy(1), 1)
        first, second, third = [asyncio.create_task(one(limited, str(i))) for i in range(3)]
        await first
        second.cancel()
        assert (await third).text == "2"
        assert second.cancelled()

    quiet(main(), VirtualLoop)


# Deadlines


def test_what_is_under_way_at_the_deadline_is_cancelled_and_counted() -> None:
    server, meter = Busy(1000, lambda _: 1.0), Meter()
    limited = Limited(Metered(server, meter), 8)

    async def main() -> list[Reply]:
        capped = Capped(Retrying(limited), Caps(seconds=4.0), len)
        replies = await asyncio.gather(*(one(capped, str(i)) for i in range(100)))
        assert asyncio.get_running_loop().time() == pytest.approx(4.0)
        return replies

    replies = quiet(main(), VirtualLoop)
    answered = sum(not reply.unasked for reply in replies)
    assert {reply.unasked for reply in replies} == {"", "the deadline of 4 s"}
    assert server.under_way == 0
    # Those that waited for their turn were never sent, and are not counted.
    assert (meter.requests, meter.cancelled) == (len(server.sent), len(server.sent) - answered)
    assert meter.cancelled == 8


def test_a_deadline_ends_waits_for_the_minute_and_for_another_attempt() -> None:
    async def main(backend: Wrapper) -> float:
        capped = Capped(backend, Caps(seconds=10.0), len)
        replies = await asyncio.gather(*(one(capped, str(i)) for i in range(5)))
        assert sum(bool(reply.unasked) for reply in replies) >= 3
        return asyncio.get_running_loop().time()

    slow = Limited(Busy(9), 4, minute=Minute(rpm=2))
    assert quiet(main(slow), VirtualLoop) == pytest.approx(10)
    refusing = Busy(0, refusal=Reply(error="429", transient=True, retry_after=30))
    assert quiet(main(Retrying(Limited(refusing, 4))), VirtualLoop) == pytest.approx(10)


# On real connections


def refuses_above(most: int, seconds: float, seen: list[int]) -> Behaviour:
    """A server that takes `most` requests at once and answers 429 to the others."""
    under_way = 0

    async def behave(http: web.Request, _body: Body) -> web.StreamResponse:
        nonlocal under_way
        seen.append(under_way)
        if under_way >= most:
            return web.json_response(
                {"error": {"message": "busy"}}, status=429, headers={"retry-after": "0"}
            )
        under_way += 1
        try:
            await asyncio.sleep(seconds)
        finally:
            under_way -= 1
        return web.json_response(chat("yes"))

    return behave


def test_a_real_server_that_refuses_above_a_number() -> None:
    seen: list[int] = []

    async def main(url: str) -> float:
        backend = Retrying(Limited(OpenAIBackend("m", base_url=url), 32), first_wait=0.01)
        began = time.monotonic()
        replies = await asyncio.gather(*(one(backend, str(i)) for i in range(160)))
        assert {reply.text for reply in replies} == {"yes"}
        await backend.close()
        return time.monotonic() - began

    with serve() as server:
        server.script("/completions", refuses_above(8, 0.05, seen))
        took = quiet(main(server.url))
    assert sum(under_way >= 8 for under_way in seen) < 50
    assert 160 / 8 * 0.05 <= took < 20


def test_a_real_server_sees_the_deadline() -> None:
    left: list[bool] = []

    async def endless(_http: web.Request, _body: Body) -> web.StreamResponse:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            left.append(True)
            raise
        return web.json_response(chat("late"))

    async def main(url: str) -> None:
        meter = Meter()
        inner = Limited(Metered(OpenAIBackend("m", base_url=url), meter), 4)
        capped = Capped(Retrying(inner), Caps(seconds=0.4), len)
        replies = await asyncio.gather(*(one(capped, str(i)) for i in range(10)))
        assert {reply.unasked for reply in replies} == {"the deadline of 0.4 s"}
        assert (meter.requests, meter.cancelled) == (4, 4)
        await capped.close()

    with serve() as server:
        server.script("/completions", endless)
        quiet(main(server.url))
        assert len(server.received) == 4
