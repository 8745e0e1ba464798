from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrank.backends.wrappers import (
    Cached,
    Capped,
    Caps,
    Limited,
    Meter,
    Metered,
    Retrying,
    Routed,
    Wrapper,
    about,
    expected_usage,
)
from llmrank.errors import BackendError, CapabilityError
from llmrank.plan import Ask, Embed, Grade, Likelihood, Order, Pick, Write
from llmrank.request import Message, Params, Reply, Request, Want
from llmrank.types import Document, Usage
from tests.backends.fakes import (
    QUERY,
    Fake,
    echo,
    one,
    quiet,
    request,
    slowly,
    transient,
)
from tests.effort import examples


class Dictionary:
    """The smallest memory."""

    def __init__(self) -> None:
        self.stored: dict[str, Reply] = {}
        self.told: list[Mapping[str, object]] = []

    def get(self, key: str) -> Reply | None:
        """What was put."""
        return self.stored.get(key)

    def put(self, items: Sequence[tuple[str, Mapping[str, object], Reply]]) -> None:
        """Keep."""
        for key, told, reply in items:
            assert key not in self.stored
            self.told.append(told)
            self.stored[key] = Reply(text=reply.text, reused=True)


# Cached


def test_what_was_answered_is_not_asked_again() -> None:
    async def main() -> None:
        inner, memory = Fake(), Dictionary()
        cached = Cached(inner, memory)
        first = await cached.answer([request("a"), request("b")])
        second = await cached.answer([request("b"), request("c"), request("a")])
        assert [(r.text, r.reused) for r in first] == [("a", False), ("b", False)]
        assert [(r.text, r.reused) for r in second] == [("b", True), ("c", False), ("a", True)]
        assert inner.sent == {"a": 1, "b": 1, "c": 1}
        assert [told["docs"] for told in memory.told] == [["a"], ["b"], ["c"]]

    quiet(main())


def test_duplicates_in_one_batch_are_asked_once() -> None:
    async def main() -> None:
        inner = Fake()
        texts = ["a", "b", "a", "a", "b"]
        replies = await Cached(inner, Dictionary()).answer([request(text) for text in texts])
        assert [r.text for r in replies] == texts
        assert [r.reused for r in replies] == [False, False, True, True, True]
        assert inner.sent == {"a": 1, "b": 1}

    quiet(main())


@examples(60)
@given(st.lists(st.lists(st.sampled_from("abcdef"), max_size=5), max_size=8))
def test_the_same_question_is_never_under_way_twice(batches: list[list[str]]) -> None:
    async def main() -> None:
        inner = Fake()
        cached = Cached(inner, Dictionary())
        asked = [cached.answer([request(text) for text in texts]) for texts in batches]
        done = await asyncio.gather(*asked)
        assert [[reply.text for reply in replies] for replies in done] == batches
        assert all(count == 1 for count in inner.sent.values())
        assert sum(not r.reused for replies in done for r in replies) == len(inner.sent)

    quiet(main())


def test_only_one_of_those_who_waited_paid() -> None:
    async def main() -> None:
        inner = Fake()
        cached = Cached(inner, Dictionary())
        replies = await asyncio.gather(*(one(cached, "a") for _ in range(10)))
        assert sorted(reply.reused for reply in replies) == [False] + [True] * 9

    quiet(main())


@pytest.mark.parametrize("bad", [Reply(error="lost"), Reply(unasked="the cap")])
def test_failures_are_neither_stored_nor_reused(bad: Reply) -> None:
    async def main() -> None:
        async def first_bad(item: Request, before: int) -> Reply:
            await asyncio.sleep(0)
            return await echo(item, before) if before else bad

        memory = Dictionary()
        cached = Cached(Fake(first_bad), memory)
        replies = await cached.answer([request("a"), request("a")])
        assert [replace(reply, key="") for reply in replies] == [bad, bad]
        assert memory.stored == {}
        assert (await one(cached, "a")).text == "a"

    quiet(main())


@pytest.mark.parametrize("bad", [Reply(error="lost"), Reply(unasked="the cap")])
def test_those_who_wait_for_a_failure_get_it_as_it_is(bad: Reply) -> None:
    async def main() -> None:
        async def failing(_: Request, __: int) -> Reply:
            await asyncio.sleep(0)
            return bad

        cached = Cached(Fake(failing), Dictionary())
        replies = await asyncio.gather(*(one(cached, "a") for _ in range(3)))
        assert [replace(reply, key="") for reply in replies] == [bad] * 3

    quiet(main())


def test_an_error_reaches_all_who_wait_and_is_forgotten() -> None:
    async def main() -> None:
        error = BackendError("no server")

        async def first_raises(item: Request, before: int) -> Reply:
            await asyncio.sleep(0)
            if not before:
                raise error
            return Reply(text="later")

        cached = Cached(Fake(first_raises), Dictionary())
        waiting = (one(cached, "a") for _ in range(4))
        assert await asyncio.gather(*waiting, return_exceptions=True) == [error] * 4
        assert (await one(cached, "a")).text == "later"

    quiet(main())


def test_an_error_that_nobody_else_waits_for_is_raised_once() -> None:
    async def raising(_: Request, __: int) -> Reply:
        raise BackendError("no server")

    async def main() -> None:
        with pytest.raises(BackendError):
            await one(Cached(Fake(raising), Dictionary()), "a")

    quiet(main())


def test_an_error_of_the_memory_reaches_all_who_wait() -> None:
    class Full(Dictionary):
        def put(self, items: object) -> None:
            raise OSError("disk full")

    async def main() -> None:
        cached = Cached(Fake(), Full())
        waiting = (one(cached, "a") for _ in range(3))
        found = await asyncio.gather(*waiting, return_exceptions=True)
        assert [str(error) for error in found] == ["disk full"] * 3

    quiet(main())


def test_cancelling_who_asked_leaves_those_who_wait_to_ask() -> None:
    async def main() -> None:
        inner = Fake(slowly)
        cached = Cached(inner, Dictionary())
        asker, *waiters = [asyncio.create_task(one(cached, "a")) for _ in range(4)]
        await asyncio.sleep(0.001)
        asker.cancel()
        replies = await asyncio.gather(*waiters)
        assert [reply.text for reply in replies] == ["a"] * 3
        assert sorted(reply.reused for reply in replies) == [False, True, True]
        assert asker.cancelled()
        assert inner.sent == {"a": 2}

    quiet(main())


def test_cancelling_who_waits_disturbs_nobody() -> None:
    async def main() -> None:
        inner = Fake(slowly)
        memory = Dictionary()
        cached = Cached(inner, memory)
        asker, waiter, other = [asyncio.create_task(one(cached, "a")) for _ in range(3)]
        await asyncio.sleep(0.001)
        waiter.cancel()
        assert [(await task).text for task in (asker, other)] == ["a", "a"]
        assert waiter.cancelled()
        assert (inner.sent, len(memory.stored)) == ({"a": 1}, 1)

    quiet(main())


def test_what_is_told_about_a_request() -> None:
    docs = (Document("d1", "x"), Document("d2", "y"))
    asks: dict[Ask[Any], dict[str, object]] = {
        Order(QUERY, docs): {"ask": "order", "query": "q", "docs": ["d1", "d2"]},
        Pick(QUERY, docs): {"ask": "pick", "query": "q", "docs": ["d1", "d2"]},
        Grade(QUERY, docs[0]): {"ask": "grade", "query": "q", "docs": ["d1"]},
        Likelihood(QUERY, docs[0]): {"ask": "likelihood", "query": "q", "docs": ["d1"]},
        Write("hyde", (("query", "x"),)): {"ask": "write", "task": "hyde"},
        Embed(("a", "b")): {"ask": "embed", "texts": 2},
    }
    for ask, expected in asks.items():
        assert about(Request(ask=ask, want="text", sample=3)) == {**expected, "sample": 3}


# Capped


@examples(80)
@given(
    st.lists(st.integers(1, 4), max_size=12),
    st.none() | st.integers(0, 20),
    st.none() | st.integers(0, 300),
    st.none() | st.integers(0, 300),
)
def test_caps_are_never_passed(
    batches: list[int], calls: int | None, tokens: int | None, cost: int | None
) -> None:
    async def spending(item: Request, _: int) -> Reply:
        await asyncio.sleep(0)
        written = len(item.prompt) % 8
        return Reply(text="x", usage=Usage(len(item.prompt), written))

    async def main() -> None:
        meter = Meter()
        caps = Caps(calls, tokens, cost, prompt_price=1e6, completion_price=2e6)
        capped = Capped(Metered(Fake(spending), meter), caps, len)
        number = 0
        asked = []
        for size in batches:
            texts = ["x" * (number + i) for i in range(size)]
            number += size
            asked.append(capped.answer([request(text, max_tokens=8) for text in texts]))
        done = [reply for replies in await asyncio.gather(*asked) for reply in replies]
        assert len(done) == sum(batches)
        assert meter.requests == sum(not reply.unasked for reply in done)
        assert meter.requests <= (number if calls is None else calls)
        assert tokens is None or meter.usage.total <= tokens
        assert cost is None or caps.price(meter.usage) <= cost
        if calls is tokens is cost is None:
            assert meter.requests == number

    quiet(main())


def test_what_was_reserved_and_not_used_is_free_again() -> None:
    async def short(_: Request, before: int) -> Reply:
        return Reply(text="x", usage=Usage(2, 1))

    async def main() -> list[str]:
        capped = Capped(Fake(short), Caps(tokens=14), len)
        # Each reserves 2 + 8 tokens and takes 3: the third would start at 6 + 10 > 14.
        return [(await capped.answer([request("ab", max_tokens=8)]))[0].unasked for _ in range(3)]

    assert quiet(main()) == ["", "", "the cap of 14 tokens"]


def test_what_is_under_way_counts_with_its_estimate() -> None:
    async def main() -> None:
        capped = Capped(Fake(slowly), Caps(tokens=25), len)
        asked = (capped.answer([request("ab", max_tokens=8)]) for _ in range(5))
        replies = [reply for (reply,) in await asyncio.gather(*asked)]
        assert [bool(reply.unasked) for reply in replies] == [False, False, True, True, True]

    quiet(main())


def test_an_error_gives_back_what_it_reserved() -> None:
    async def lost(_: Request, before: int) -> Reply:
        return Reply(error="lost")

    async def main() -> None:
        fake = Fake(lost)
        capped = Capped(fake, Caps(tokens=10), len)
        for _ in range(5):
            assert (await capped.answer([request("ab", max_tokens=8)]))[0].error == "lost"
        assert fake.calls == 5

    quiet(main())


@pytest.mark.parametrize(
    ("caps", "reason"),
    [
        (Caps(calls=1), "the cap of 1 calls"),
        (Caps(tokens=3), "the cap of 3 tokens"),
        (Caps(cost=0.5, prompt_price=2.5e5), "the cap of 0.5 in money"),
    ],
)
def test_the_reason_is_given(caps: Caps, reason: str) -> None:
    async def used(_: Request, __: int) -> Reply:
        return Reply(text="x", usage=Usage(1, 1))

    async def main() -> list[Reply]:
        capped = Capped(Fake(used), caps, len)
        return await capped.answer([request("a"), request("bbb"), request("ccc")])

    assert [reply.unasked for reply in quiet(main())] == ["", reason, reason]


def test_the_deadline_cuts_off_what_is_under_way() -> None:
    async def forever(_: Request, __: int) -> Reply:
        await asyncio.sleep(30)
        return Reply()

    async def main() -> None:
        capped = Capped(Fake(forever), Caps(seconds=0.05), len)
        began = time.monotonic()
        for _ in range(3):
            replies = await capped.answer([request("a"), request("b")])
            assert [reply.unasked for reply in replies] == ["the deadline of 0.05 s"] * 2
        assert time.monotonic() - began < 10

    quiet(main())


def test_a_timeout_of_the_backend_is_not_taken_for_the_deadline() -> None:
    async def hurried(_: Request, __: int) -> Reply:
        raise TimeoutError("socket")

    async def main() -> None:
        with pytest.raises(TimeoutError, match="socket"):
            await one(Capped(Fake(hurried), Caps(seconds=60), len), "a")

    quiet(main())


def test_expected_usage_counts_all_that_is_sent() -> None:
    ask = Grade(QUERY, Document("d", "d"))
    chat = Request(
        ask=ask,
        want="text",
        messages=(Message("system", "abc"), Message("user", "de")),
        params=Params(max_tokens=50),
    )
    assert expected_usage(chat, len) == Usage(5 + 8, 50)
    scored = Request(ask=ask, want="likelihood", prompt="abc", target="de")
    assert expected_usage(scored, len) == Usage(5, 0)
    vectors = Request(ask=ask, want="vectors", texts=("abc", "", "de"))
    assert expected_usage(vectors, len) == Usage(5, 0)


# Limited


@pytest.mark.parametrize("batch", [1, 3, 40])
def test_no_more_than_the_limit_is_under_way(batch: int) -> None:
    async def main() -> None:
        inner = Fake(slowly)
        limited = Limited(inner, 5)
        asked = [limited.answer([request(f"{i}.{j}") for j in range(batch)]) for i in range(12)]
        for i, replies in enumerate(await asyncio.gather(*asked)):
            assert [reply.text for reply in replies] == [f"{i}.{j}" for j in range(batch)]
        assert inner.most == 5
        assert await limited.answer([]) == []

    quiet(main())


@pytest.mark.parametrize("wrapper", [lambda inner: Limited(inner, 2), Retrying])
def test_an_error_stops_the_rest_of_the_batch(wrapper: Callable[[Fake], Wrapper]) -> None:
    error = BackendError("wrong key")

    async def second_raises(item: Request, before: int) -> Reply:
        await asyncio.sleep(0)
        if item.prompt == "1":
            raise error
        return await slowly(item, before)

    async def main() -> None:
        inner = Fake(second_raises)
        with pytest.raises(BackendError) as caught:
            await wrapper(inner).answer([request(str(i)) for i in range(10)])
        assert caught.value is error
        assert inner.under_way == 0

    quiet(main())


# Retrying


@pytest.mark.parametrize("fails", range(6))
@pytest.mark.parametrize("attempts", [1, 2, 4])
def test_passing_errors_are_asked_again(fails: int, attempts: int) -> None:
    async def main() -> None:
        inner = Fake(transient(fails))
        reply = await one(Retrying(inner, attempts=attempts, first_wait=0.0001), "a")
        assert inner.sent["a"] == min(fails + 1, attempts)
        if fails < attempts:
            assert reply == Reply(text="a")
        else:
            assert reply == Reply(error=f"busy {attempts - 1}", transient=True)

    quiet(main())


def test_lasting_errors_are_not_asked_again() -> None:
    async def lost(_: Request, __: int) -> Reply:
        return Reply(error="context too long")

    async def main() -> None:
        inner = Fake(lost)
        assert (await one(Retrying(inner), "a")).error == "context too long"
        assert inner.calls == 1

    quiet(main())


def test_a_batch_is_retried_one_by_one() -> None:
    async def some(item: Request, before: int) -> Reply:
        return await transient(int(item.prompt))(item, before)

    async def main() -> None:
        inner = Fake(some)
        retrying = Retrying(inner, first_wait=0.0001)
        replies = await retrying.answer([request(str(i)) for i in range(4)])
        assert [reply.text for reply in replies] == ["0", "1", "2", "3"]
        assert inner.sent == {"0": 1, "1": 2, "2": 3, "3": 4}
        assert await retrying.answer([]) == []

    quiet(main())


def test_the_server_says_how_long_to_wait_up_to_the_longest() -> None:
    async def timed(retry_after: float, longest: float) -> float:
        retrying = Retrying(Fake(transient(2, retry_after)), longest=longest, first_wait=30)
        began = time.monotonic()
        assert (await one(retrying, "a")).text == "a"
        return time.monotonic() - began

    assert 0.04 <= quiet(timed(0.02, 60)) < 10
    assert 0.02 <= quiet(timed(3600, 0.01)) < 10
    assert quiet(timed(0, 60)) < 10


def test_a_burst_of_failures_does_not_end_the_run() -> None:
    async def main() -> None:
        inner = Fake(transient(1))
        retrying = Retrying(Limited(inner, 64, least=64), first_wait=0.01)
        replies = await asyncio.gather(*(one(retrying, str(i)) for i in range(64)))
        assert [reply.text for reply in replies] == [str(i) for i in range(64)]
        assert inner.most == 64

    quiet(main())


def test_a_dead_server_is_given_up() -> None:
    async def main() -> None:
        inner = Fake(transient(1000))
        retrying = Retrying(inner, attempts=3, patience=4, first_wait=0.0001)
        for i in range(3):
            assert (await one(retrying, str(i))).transient
        with pytest.raises(BackendError, match=r"fake failed 4 requests in a row; last: busy 2"):
            await one(retrying, "3")
        assert inner.calls == 12

    quiet(main())


def test_a_success_between_renews_the_patience() -> None:
    async def every_third(item: Request, before: int) -> Reply:
        return await transient(0 if int(item.prompt) % 3 == 2 else 1000)(item, before)

    async def main() -> None:
        retrying = Retrying(Fake(every_third), attempts=2, patience=3, first_wait=0.0001)
        replies = [await one(retrying, str(i)) for i in range(30)]
        assert sum(bool(reply.error) for reply in replies) == 20

    quiet(main())


# Metered, Routed


def test_the_meter_counts_what_was_sent() -> None:
    async def used(item: Request, before: int) -> Reply:
        if before == 0:
            return Reply(error="busy", transient=True, seconds=0.5)
        return Reply(text="x", usage=Usage(3, 2, 1, 1), seconds=0.25, model=f"m{item.prompt}")

    async def main() -> None:
        meter = Meter()
        metered = Retrying(Metered(Fake(used), meter), first_wait=0.0001)
        await metered.answer([request("1"), request("2")])
        assert (meter.requests, meter.errors, meter.seconds) == (4, 2, 1.5)
        assert meter.usage == Usage(6, 4, 2, 2)
        assert meter.models == {"m1", "m2"}

    quiet(main())


def test_each_want_goes_to_its_backend() -> None:
    async def main() -> None:
        chat = Fake(identity="chat", wants=("text", "labels"))
        encoder = Fake(identity="encoder", wants=("vectors",), batch=64)
        routed = Routed({"text": chat, "vectors": encoder, "labels": chat})
        wants: list[Want] = ["vectors", "text", "labels", "vectors", "text"]
        replies = await routed.answer([request(f"{i}", want) for i, want in enumerate(wants)])
        assert [reply.text for reply in replies] == ["0", "1", "2", "3", "4"]
        assert (chat.sent, encoder.sent) == ({"1": 1, "2": 1, "4": 1}, {"0": 1, "3": 1})
        assert routed.wants == {"text", "labels", "vectors"}
        assert (routed.batch, routed.identity) == (64, "chat+chat+encoder")
        await routed.close()
        assert (chat.closed, encoder.closed) == (1, 1)

    quiet(main())


def test_a_want_that_nobody_serves_is_named_before_anything_is_sent() -> None:
    async def main() -> None:
        chat = Fake()
        routed = Routed({"text": chat})
        with pytest.raises(CapabilityError, match=r"cannot give vectors; it gives: text"):
            await routed.answer([request("a"), request("b", "vectors")])
        assert chat.calls == 0

    quiet(main())


def test_a_wrapper_passes_everything_on() -> None:
    async def main() -> None:
        inner = Fake(identity="inside", wants=("labels",), batch=7)
        wrapper = Wrapper(inner)
        assert (wrapper.identity, wrapper.batch) == ("inside", 7)
        assert wrapper.wants == {"labels"}
        assert (await one(wrapper, "a")).text == "a"
        await wrapper.close()
        assert inner.closed == 1

    quiet(main())
