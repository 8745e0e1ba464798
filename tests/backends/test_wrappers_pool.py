from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from llmrank.backends.openai import Learnt, OpenAIBackend
from llmrank.backends.oracle import Oracle
from llmrank.backends.tokens import Estimate
from llmrank.backends.wrappers import Cached, Limited, Meter, Metered, ModelPool, Pool, Retrying
from llmrank.errors import BackendError, InputError
from llmrank.request import Backend, Reply, Request
from tests.backends.fakes import Behaviour, Fake, VirtualLoop, one, quiet, request
from tests.backends.test_wrappers import Dictionary
from tests.servers import completion, refuses, sends, serve


def taking(seconds: float) -> Behaviour:
    """Answers after so many seconds."""

    async def behaviour(item: Request, _: int) -> Reply:
        await asyncio.sleep(seconds)
        return Reply(text=item.prompt)

    return behaviour


class Switched(Fake):
    """A server that can be turned off: then it refuses connections."""

    on = True

    def __init__(self, name: str, seconds: float = 1.0) -> None:
        super().__init__(taking(seconds), identity=f"openai:m@http://{name}/v1")
        self.tried = 0
        self.name = name

    async def answer(self, requests: Sequence[Request]) -> list[Reply]:
        """An answer, or an error at once."""
        if self.on:
            return await super().answer(requests)
        self.tried += 1
        await asyncio.sleep(0.001)
        return [Reply(error=f"no answer from {self.name}", transient=True)] * len(requests)


async def flood(pool: Backend | Retrying, total: int) -> list[Reply]:
    return list(await asyncio.gather(*(one(pool, str(i)) for i in range(total))))


def test_each_request_goes_to_the_one_with_the_fewest_under_way() -> None:
    async def main() -> None:
        members = [Fake(taking(seconds)) for seconds in (1.0, 1.0, 4.0)]
        pool = Pool(members)
        await flood(pool, 30)
        assert [member.most for member in members] == [10, 10, 10]
        numbers = iter(range(600))

        async def work() -> None:
            for number in numbers:
                await one(pool, f"again {number}")

        await asyncio.gather(*(work() for _ in range(12)))
        served = [sum(member.sent.values()) - 10 for member in members]
        # Each has 4 under way, so a server of a quarter of the speed gets a quarter.
        assert served[0] == pytest.approx(600 * 4 / 9, abs=12)
        assert served[2] == pytest.approx(600 / 9, abs=12)

    quiet(main(), VirtualLoop)


def test_requests_one_after_another_stay_with_one_server() -> None:
    async def main() -> None:
        members = [Fake(), Fake()]
        pool = Pool(members)
        for i in range(5):
            await one(pool, str(i))
        assert [member.calls for member in members] == [5, 0]

    quiet(main(), VirtualLoop)


def test_a_server_that_fails_is_set_aside_and_tried_again() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        good, bad = Switched("good"), Switched("bad")
        bad.on = False
        pool = Pool([bad, good], patience=3, rest=30)
        errors = [(await one(pool, str(i))).error for i in range(5)]
        assert errors == ["no answer from bad"] * 3 + [""] * 2
        while loop.time() < 29:
            assert not (await one(pool, "while it rests")).error
        assert bad.tried == 3
        await asyncio.sleep(30 - loop.time() + 0.01)
        # When the time is over one request alone finds out.
        assert sum(bool(reply.error) for reply in await flood(pool, 20)) == 1
        assert bad.tried == 4
        bad.on = True
        await asyncio.sleep(31)
        await flood(pool, 20)
        assert bad.calls == 1
        await flood(pool, 20)
        assert bad.calls == 11

    quiet(main(), VirtualLoop)


def test_failures_at_the_same_time_are_one() -> None:
    async def main() -> None:
        good, bad = Switched("good"), Switched("bad")
        bad.on = False
        pool = Pool([bad, good])
        await flood(pool, 50)
        assert bad.tried == 25
        bad.on = True
        await flood(pool, 50)
        assert bad.calls == 25

    quiet(main(), VirtualLoop)


def test_when_all_are_down_each_is_named_and_all_are_still_tried() -> None:
    async def main() -> None:
        members = [Switched("one"), Switched("two")]
        for member in members:
            member.on = False
        retrying = Retrying(Pool(members, rest=5))
        with pytest.raises(BackendError) as caught:
            for i in range(9):
                await one(retrying, str(i))
        for name in ("one", "two"):
            assert f"openai:m@http://{name}/v1: no answer from {name}" in str(caught.value)
        for member in members:
            member.on = True
        assert (await one(Pool(members), "x")).text == "x"

    quiet(main(), VirtualLoop)


def test_a_pool_recovers_as_soon_as_one_server_is_back() -> None:
    async def main() -> None:
        members = [Switched("one"), Switched("two")]
        for member in members:
            member.on = False
        pool = Pool(members, rest=1000)
        for i in range(8):
            await one(pool, str(i))
        members[1].on = True
        replies = [await one(pool, str(i)) for i in range(4)]
        assert [bool(reply.error) for reply in replies][-2:] == [False, False]

    quiet(main(), VirtualLoop)


def test_an_error_of_one_request_is_none_of_the_server() -> None:
    async def lost(_: Request, __: int) -> Reply:
        return Reply(error="context too long")

    async def main() -> None:
        picky = Fake(lost)
        pool = Pool([picky, Fake()])
        for i in range(10):
            assert (await one(pool, str(i))).error == "context too long"

    quiet(main(), VirtualLoop)


def test_a_wrong_key_at_one_server_is_raised() -> None:
    async def refused(_: Request, __: int) -> Reply:
        raise BackendError("wrong key")

    async def main() -> None:
        with pytest.raises(BackendError, match="wrong key"):
            await flood(Pool([Fake(), Fake(refused)]), 4)

    quiet(main(), VirtualLoop)


def test_one_name_whoever_answers() -> None:
    a, b = Switched("a"), Switched("b")
    assert Pool([a, b]).identity == Pool([b]).identity == "openai:m"
    assert Pool([Fake(), Fake()]).identity == "fake"
    scaled = Fake(identity="score:m@http://a/v1,scale=logit")
    assert Pool([scaled]).identity == "score:m,scale=logit"
    assert Pool([Fake(identity="openai:m@http://a/v1#thinking=off")]).identity.endswith(
        "#thinking=off"
    )

    async def main() -> None:
        memory = Dictionary()
        await Cached(Pool([a, b]), memory).answer([request("x")])
        (reply,) = await Cached(Pool([Switched("c")]), memory).answer([request("x")])
        assert reply.reused

    quiet(main(), VirtualLoop)


def test_different_models_are_no_pool() -> None:
    for wrong in ([], [Fake(identity="openai:m@x"), Fake(identity="openai:n@x")]):
        with pytest.raises(InputError, match="a pool serves one model"):
            Pool(wrong)


def test_what_a_pool_can_give_is_what_all_can() -> None:
    pool = Pool([Fake(wants=("text", "labels")), Fake(wants=("text", "vectors"))])
    assert pool.wants == {"text"}
    assert pool.batch == 1


def test_a_pool_of_models_counts_as_the_first_does() -> None:
    class Own(Oracle):
        counter, tokenizer = Estimate(), Estimate(7)

    pool = ModelPool([Own({}), Oracle({})])
    assert (pool.counter, pool.tokenizer) == (Own.counter, Own.tokenizer)


def test_a_pool_counts_by_another_server_where_the_first_is_away() -> None:
    def backend(url: str) -> OpenAIBackend:
        found = OpenAIBackend("m", base_url=url)
        found.adopt(Learnt(dialect="vllm", tokenizes=True, context=100))
        return found

    with serve() as gone, serve() as there:
        gone.script("//tokenize", refuses(503, "gone", headers={"retry-after-ms": "1"}))
        there.script("//tokenize", sends({"tokens": [1, 2, 3]}))
        pool = ModelPool([backend(gone.url), backend(there.url)])
        tokenizer = pool.tokenizer
        assert (tokenizer.count("text"), tokenizer.context) == (3, 100)
        assert pool.counter.remote is False


def test_every_server_has_limits_of_its_own() -> None:
    async def main() -> None:
        small, large = Switched("small"), Switched("large")
        limits = {id(small): 2, id(large): 30}
        pool = Pool([small, large]).each(
            lambda inner: Limited(inner, limits[id(inner)], least=limits[id(inner)])
        )
        await flood(pool, 40)
        assert (small.most, large.most) == (2, 20)
        await pool.close()
        assert (small.closed, large.closed) == (1, 1)

    quiet(main(), VirtualLoop)


def test_real_servers_one_of_which_goes_away() -> None:
    async def main(first: str, second: str) -> None:
        meter = Meter()
        pool = Pool([OpenAIBackend("m", base_url=url) for url in (first, second)])
        each = pool.each(lambda inner: Limited(Metered(inner, meter), 8))
        backend = Retrying(each, first_wait=0.01)
        replies = await asyncio.gather(*(one(backend, str(i)) for i in range(40)))
        assert {reply.text for reply in replies} == {"yes"}
        assert meter.errors >= 3
        await backend.close()

    with serve() as good, serve() as bad:
        good.script("/completions", sends(completion("yes")))
        bad.script("/completions", refuses(500, "gone"))
        quiet(main(bad.url, good.url))
        assert len(bad.received) < 40


def test_real_servers_that_are_all_down() -> None:
    async def main(urls: list[str]) -> None:
        backend = Retrying(
            Pool([OpenAIBackend("m", base_url=url) for url in urls]), first_wait=0.001
        )
        with pytest.raises(BackendError) as caught:
            for i in range(9):
                await one(backend, str(i))
        for url in urls:
            assert url in str(caught.value)
        await backend.close()

    with serve() as one_server, serve() as other:
        urls = [one_server.url, other.url]
    quiet(main(urls))
