from __future__ import annotations

import asyncio
from random import Random

import pytest

from llmrank.backends.wrappers import Hedged, Meter, Metered, Wrapper
from llmrank.errors import BackendError, InputError
from llmrank.request import Reply, Request
from tests.backends.fakes import Behaviour, Fake, VirtualLoop, one, quiet


def tail(share: float, times: float) -> Behaviour:
    """About a second, and `times` as long for a share of the requests."""
    random = Random(0)

    async def behaviour(item: Request, _: int) -> Reply:
        hangs = random.random() < share
        await asyncio.sleep(random.lognormvariate(0, 0.3) * (times if hangs else 1))
        return Reply(text=item.prompt)

    return behaviour


async def rounds(backend: Wrapper, total: int) -> float:
    """Rounds of 100 requests, one round after another; seconds in all."""
    for start in range(0, total, 100):
        found = await asyncio.gather(*(one(backend, str(start + i)) for i in range(100)))
        assert [reply.text for reply in found] == [str(start + i) for i in range(100)]
    return asyncio.get_running_loop().time()


def test_few_hanging_answers_no_longer_hold_up_their_round() -> None:
    inner = Fake(tail(0.01, 50))
    plain = quiet(rounds(Wrapper(Fake(tail(0.01, 50))), 3000), VirtualLoop)
    hedged = quiet(rounds(Hedged(inner), 3000), VirtualLoop)
    assert hedged < plain / 4
    assert sum(inner.sent.values()) < 1.02 * 3000


@pytest.mark.parametrize("share", [0.0, 0.05])
def test_no_more_than_the_share_is_asked_twice(share: float) -> None:
    inner = Fake(tail(0.4, 20))
    quiet(rounds(Hedged(inner, share=share), 3000), VirtualLoop)
    assert 3000 * (1 + share / 2) <= sum(inner.sent.values()) <= 3000 * (1 + share) + 1


def hangs_once(then: Reply | BaseException) -> Behaviour:
    """The first attempt at request 50 hangs; the second gives this."""

    async def behaviour(item: Request, before: int) -> Reply:
        await asyncio.sleep(30 if (item.prompt, before) == ("50", 0) else 1)
        if before and isinstance(then, BaseException):
            raise then
        return then if before and isinstance(then, Reply) else Reply(text=item.prompt)

    return behaviour


@pytest.mark.parametrize(("then", "took"), [(Reply(text="50"), 4), (Reply(error="lost"), 30)])
def test_an_answer_counts_before_an_error(then: Reply, took: float) -> None:
    async def main() -> None:
        meter = Meter()
        hedged = Hedged(Metered(Fake(hangs_once(then)), meter))
        for i in range(50):
            await one(hedged, str(i))
        began = asyncio.get_running_loop().time()
        assert (await one(hedged, "50")).text == "50"
        assert asyncio.get_running_loop().time() - began == pytest.approx(took)
        assert (meter.requests, meter.cancelled) == (52, int(not then.error))

    quiet(main(), VirtualLoop)


def test_an_error_that_is_raised_leaves_nothing_under_way() -> None:
    async def main() -> None:
        inner = Fake(hangs_once(BackendError("wrong key")))
        hedged = Hedged(inner)
        for i in range(50):
            await one(hedged, str(i))
        with pytest.raises(BackendError, match="wrong key"):
            await one(hedged, "50")
        assert inner.under_way == 0

    quiet(main(), VirtualLoop)


def test_cancelling_ends_both() -> None:
    async def main() -> None:
        inner = Fake(hangs_once(Reply(error="lost")))
        hedged = Hedged(inner)
        for i in range(50):
            await one(hedged, str(i))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(one(hedged, "50"), 3.5)
        assert inner.sent["50"] == 2
        assert inner.under_way == 0

    quiet(main(), VirtualLoop)


def test_shares_that_make_no_sense_are_refused() -> None:
    for share, late in ((-0.1, 3.0), (1.1, 3.0), (0.1, 0.5)):
        with pytest.raises(InputError):
            Hedged(Fake(), share=share, late=late)
