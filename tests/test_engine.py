from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from contextvars import Context
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrank.backends.oracle import Oracle
from llmrank.backends.wrappers import Cached, Capped, Caps, Meter, Metered
from llmrank.engine import Engine, run_async, run_sync
from llmrank.errors import BackendError, TooLong
from llmrank.plan import Answer, Ask, Grade, Plan, Write, ask, ask_all, together
from llmrank.prompts import PromptSet
from llmrank.request import Backend, Reply, Request, Want
from llmrank.rerank import parse
from llmrank.store import Journal
from llmrank.types import Candidate, Document, Ordering, Query, Status, Tally
from tests.effort import examples
from tests.rerank.judges import SPECS

T = TypeVar("T")
Done = dict[int, tuple[Any, Tally]]
DRIVERS = ("run_lock_step", "run_concurrently")


class Words:
    """Prompts without templates: the request carries the ask, the answer tells the status."""

    waits = False

    def render(self, item: Ask[Any]) -> Request:
        """A request that only the ask's own repr tells apart from others."""
        return Request(ask=item, want="text", prompt=repr(item), sample=item.sample)

    def parse(self, request: Request, reply: Reply) -> Answer[Any]:
        """The text, unless there is none."""
        if reply.unasked:
            return Answer(status=Status.UNASKED, problem=reply.unasked)
        if reply.error:
            return Answer(status=Status.FAILED, problem=reply.error)
        return Answer(status=Status.OK, value=reply.text, reused=reply.reused)


class Echo:
    """Answers after yielding to the loop a few times; may fail at one call."""

    identity = "echo"
    wants: frozenset[Want] = frozenset({"text"})
    batch = 1

    def __init__(self, *, fail_at: int = -1, error: BaseException | None = None) -> None:
        self.calls = self.under_way = self.most = 0
        self.fail_at, self.error = fail_at, error
        self.random = Random(0)

    async def answer(self, requests: Sequence[Request]) -> list[Reply]:
        """The prompt itself."""
        self.under_way += len(requests)
        self.most = max(self.most, self.under_way)
        try:
            for _ in range(self.random.randrange(4)):
                await asyncio.sleep(0)
            self.calls += len(requests)
            if self.error is not None and self.calls > self.fail_at:
                raise self.error
            return [Reply(text=request.prompt) for request in requests]
        finally:
            self.under_way -= len(requests)

    async def close(self) -> None:
        """Nothing to close."""


class Slow(Oracle):
    """An oracle that takes some time for every call."""

    def __init__(self, qrels: dict[str, dict[str, int]], seconds: float) -> None:
        super().__init__(qrels)
        self.seconds, self.sent = seconds, 0

    async def answer(self, requests: Sequence[Request]) -> list[Reply]:
        """The oracle's replies, later."""
        self.sent += len(requests)
        await asyncio.sleep(self.seconds)
        return await super().answer(requests)


class Flaky(Oracle):
    """An oracle that has no reply to some requests, always the same ones."""

    async def answer(self, requests: Sequence[Request]) -> list[Reply]:
        """The oracle's replies, or an error."""
        replies = await super().answer(requests)
        return [
            Reply(error="lost") if int(request.key("x")[:2], 16) < 80 else reply
            for request, reply in zip(requests, replies, strict=True)
        ]


def quiet(work: Coroutine[Any, Any, T]) -> T:
    """Run to the end on a fresh loop; no task may be left and nothing may go unheard."""
    unheard: list[dict[str, Any]] = []

    async def main() -> T:
        asyncio.get_running_loop().set_exception_handler(lambda _, found: unheard.append(found))
        try:
            return await work
        finally:
            left = asyncio.all_tasks() - {asyncio.current_task()}
            assert not left, left

    try:
        return asyncio.run(main())
    finally:
        gc.collect(1)
        assert not unheard, unheard


def collect(
    backend: Backend, plans: Iterable[tuple[int, Plan[Any]]], *, driver: str = "run"
) -> Coroutine[Any, Any, Done]:
    return _collect(Engine(backend, PromptSet(), in_flight=8), plans, driver)


async def _collect(engine: Engine, plans: Iterable[tuple[int, Plan[Any]]], driver: str) -> Done:
    done: Done = {}

    def finished(key: int, result: object, tally: Tally) -> None:
        assert key not in done
        done[key] = result, tally

    await getattr(engine, driver)(plans, finished)
    return done


def collection(
    queries: int, depth: int, seed: int = 0
) -> tuple[list[tuple[Query, list[Candidate]]], dict[str, dict[str, int]]]:
    random = Random(seed)
    topics = [
        (
            Query(f"q{q}", f"query {q}"),
            [Candidate(Document(f"d{q}.{i}", f"text {q} {i}"), -i) for i in range(depth)],
        )
        for q in range(queries)
    ]
    qrels = {q.id: {c.document.id: random.randrange(4) for c in found} for q, found in topics}
    return topics, qrels


def reranking(
    name: str, topics: Sequence[tuple[Query, list[Candidate]]]
) -> Iterator[tuple[int, Plan[Ordering]]]:
    method = parse(name)
    for number, (query, candidates) in enumerate(topics):
        yield number, method.plan(query, candidates[: 5 + 4 * number])


def word(name: str) -> Grade:
    return Grade(Query("q", "q"), Document(name, name))


def chain(name: str, length: int) -> Plan[list[Status]]:
    seen = []
    for number in range(length):
        answer = yield from ask(word(f"{name}.{number}"))
        seen.append(answer.status)
    return seen


def nothing() -> Plan[int]:
    yield from ask_all(list[Ask[Any]]())
    return 7


@pytest.mark.slow
@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("backend", [Oracle, Flaky])
def test_both_drivers_agree(name: str, backend: type[Oracle]) -> None:
    topics, qrels = collection(10, 45)
    lock_step, concurrent = (
        quiet(collect(backend(qrels, noise=0.4), reranking(name, topics), driver=driver))
        for driver in DRIVERS
    )
    assert len(lock_step) == 10
    assert lock_step == concurrent
    for number, (ordering, tally) in lock_step.items():
        assert sorted(ordering.order) == list(range(min(45, 5 + 4 * number)))
        if name in ("sliding", "yesno"):
            assert tally.rounds == (tally.asks if name == "sliding" else 1)
        assert (tally.failures > 0) == (Status.FAILED in tally.outcomes)


@pytest.mark.parametrize("driver", DRIVERS)
def test_nothing_to_do(driver: str) -> None:
    engine = Engine(Echo(), Words(), in_flight=4)
    assert quiet(asyncio.wait_for(_collect(engine, [], driver), 5)) == {}
    plans = [(i, nothing()) for i in range(100)]
    done = quiet(asyncio.wait_for(_collect(engine, plans, driver), 5))
    assert done == {i: (7, Tally()) for i in range(100)}


@pytest.mark.parametrize("driver", DRIVERS)
def test_plans_that_ask_nothing_among_others(driver: str) -> None:
    engine = Engine(Echo(), Words(), in_flight=4)
    plans = [(i, nothing() if i % 3 else chain(str(i), 2)) for i in range(50)]
    done = quiet(asyncio.wait_for(_collect(engine, plans, driver), 5))
    assert len(done) == 50


@pytest.mark.parametrize("driver", DRIVERS)
def test_thousands_of_plans_need_the_memory_of_a_few(driver: str) -> None:
    alive = most = finished_so_far = 0
    in_flight = 8

    def counted(number: int) -> Plan[int]:
        nonlocal alive, most
        alive += 1
        most = max(most, alive)
        yield from ask(word(f"{number}"))
        yield from together([chain(f"{number}.{i}", i) for i in range(3)])
        alive -= 1
        return number

    def finished(key: int, result: int, tally: Tally) -> None:
        nonlocal finished_so_far
        finished_so_far += 1
        assert (result, tally.rounds, tally.asks) == (key, 3, 4)

    backend = Echo()
    engine = Engine(backend, Words(), in_flight=in_flight)
    quiet(getattr(engine, driver)(((i, counted(i)) for i in range(3000)), finished))
    assert (finished_so_far, backend.calls) == (3000, 12_000)
    assert backend.most == in_flight
    # Every plan under way has an ask open (less than 2 * in_flight when one is let in) or sent.
    assert most <= 3 * in_flight


class CountingLoop(asyncio.SelectorEventLoop):
    """Counts how many callbacks are scheduled to run as soon as possible."""

    scheduled = 0

    def call_soon(
        self, callback: Callable[..., object], *args: object, context: Context | None = None
    ) -> asyncio.Handle:
        """Count, and schedule."""
        self.scheduled += 1
        return super().call_soon(callback, *args, context=context)


def test_workers_with_nothing_to_do_stay_idle() -> None:
    def scheduled(in_flight: int) -> int:
        loop = CountingLoop()
        engine = Engine(Echo(), Words(), in_flight=in_flight)
        plans = ((i, chain(str(i), 20)) for i in range(20))
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(engine.run_concurrently(plans, lambda *_: None))
        return loop.scheduled

    assert scheduled(2000) < scheduled(20) + 4 * 2000


def test_earlier_plans_end_first() -> None:
    ended: list[int] = []
    engine = Engine(Echo(), Words(), in_flight=4)
    plans = ((i, chain(str(i), 4)) for i in range(200))
    quiet(engine.run_lock_step(plans, lambda key, *_: ended.append(key)))
    assert ended == sorted(ended)


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("error", [BackendError("no server"), ValueError("x"), OSError("y")])
@pytest.mark.parametrize("fail_at", [0, 13])
def test_an_error_of_the_backend_is_raised_as_it_is(
    driver: str, error: Exception, fail_at: int
) -> None:
    backend = Echo(fail_at=fail_at, error=error)
    engine = Engine(Cached(backend, Empty()), Words(), in_flight=8)
    with pytest.raises(type(error)) as caught:
        quiet(_collect(engine, ((i, chain(str(i // 2), 3)) for i in range(40)), driver))
    assert caught.value is error
    assert backend.under_way == 0


class Empty:
    """A memory that forgets."""

    def get(self, key: str) -> Reply | None:
        """Nothing."""

    def put(self, items: object) -> None:
        """Forget."""


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("where", ["start", "later", "sub-plan", "callback", "source"])
def test_an_error_of_a_plan_is_raised_as_it_is(driver: str, where: str) -> None:
    error = RuntimeError(where)

    def failing() -> Plan[int]:
        if where == "start":
            raise error
        yield from ask(word("before"))
        if where == "later":
            raise error
        return 1

    def outer() -> Plan[object]:
        if where == "sub-plan":
            where_now = yield from together([chain("inner", 1), chain("inner", 2)])
            assert where_now
            raise error
        return (yield from failing())

    def plans() -> Iterator[tuple[int, Plan[Any]]]:
        for number in range(30):
            if number == 20 and where == "source":
                raise error
            yield number, outer() if number == 10 else chain(str(number), 3)

    def finished(key: int, *_: object) -> None:
        if where == "callback" and key == 5:
            raise error

    engine = Engine(Echo(), Words(), in_flight=8)
    with pytest.raises(RuntimeError) as caught:
        quiet(getattr(engine, driver)(plans(), finished))
    assert caught.value is error


def test_a_backend_that_loses_replies_is_noticed() -> None:
    class Forgetful(Echo):
        async def answer(self, requests: Sequence[Request]) -> list[Reply]:
            return (await super().answer(requests))[1:]

    for driver in DRIVERS:
        with pytest.raises(ValueError, match="zip"):
            quiet(_collect(Engine(Forgetful(), Words()), [(1, chain("a", 1))], driver))


def test_the_driver_suits_the_backend() -> None:
    class Batching(Echo):
        batch = 16

    for backend, most in ((Echo(), 4), (Batching(), 16)):
        plans = [(i, chain(str(i), 2)) for i in range(64)]
        quiet(_collect(Engine(backend, Words(), in_flight=4), plans, "run"))
        assert backend.most == most


@examples(40)
@given(
    st.sampled_from([spec for spec in SPECS if not spec.startswith(("prp_a", "prp_s"))]),
    st.sampled_from(DRIVERS),
    st.integers(0, 60),
    st.integers(0, 3000),
)
def test_caps_are_kept_and_every_plan_ends(name: str, driver: str, calls: int, tokens: int) -> None:
    topics, qrels = collection(6, 45)
    meter = Meter()
    oracle = Oracle(qrels)
    backend = Capped(Metered(oracle, meter), Caps(calls=calls, tokens=tokens), oracle.counter.count)
    done = quiet(collect(backend, reranking(name, topics), driver=driver))
    assert meter.requests <= calls
    assert meter.usage.total <= tokens
    assert len(done) == 6
    for number, (ordering, _) in done.items():
        assert sorted(ordering.order) == list(range(5 + 4 * number))
    assert sum(tally.asks for _, tally in done.values()) == meter.requests


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_cap_leaves_the_best_order_so_far(driver: str) -> None:
    candidates = [Candidate(Document(f"d{i}", "t")) for i in range(10)]
    qrels = {"q": {f"d{i}": i for i in range(10)}}
    # Windows of 4 with stride 2 over 10: [6..10), [4..8), [2..6), [0..4); two are answered.
    backend = Capped(Oracle(qrels), Caps(calls=2), len)
    plan = parse("sliding(window=4, stride=2)").plan(Query("q", "q"), candidates)
    ordering, tally = quiet(collect(backend, [(0, plan)], driver=driver))[0]
    assert ordering.order == (0, 1, 2, 3, 9, 8, 5, 4, 7, 6)
    assert tally.outcomes == {Status.OK: 2, Status.UNASKED: 2}
    assert (tally.asks, tally.unasked, tally.failures) == (2, 2, 0)


@pytest.mark.parametrize("driver", DRIVERS)
def test_the_deadline_ends_the_run(driver: str) -> None:
    topics, qrels = collection(10, 45)
    slow = Slow(qrels, 0.04)
    backend = Capped(slow, Caps(seconds=0.1), slow.counter.count)
    began = time.monotonic()
    done = quiet(collect(backend, reranking("yesno", topics), driver=driver))
    assert time.monotonic() - began < 10
    assert len(done) == 10
    assert slow.sent <= 4 * 8
    assert sum(tally.unasked for _, tally in done.values()) > 0
    hurried = Capped(slow, Caps(seconds=0.0), slow.counter.count)
    slow.sent = 0
    assert len(quiet(collect(hurried, reranking("yesno", topics), driver=driver))) == 10
    assert slow.sent == 0


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("after", [0.0, 0.01, 0.04])
def test_a_cancelled_run_can_be_continued(tmp_path: Path, driver: str, after: float) -> None:
    topics, qrels = collection(6, 30)
    expected = quiet(collect(Oracle(qrels), reranking("sliding", topics)))
    journal = Journal(tmp_path / "journal.sqlite")
    slow = Slow(qrels, 0.03)

    async def cut_short() -> None:
        work = collect(Cached(slow, journal), reranking("sliding", topics), driver=driver)
        task = asyncio.ensure_future(work)
        await asyncio.sleep(after)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    quiet(cut_short())
    kept = len(journal)
    meter = Meter()
    again = Cached(Metered(Slow(qrels, 0.0), meter), journal)
    done = quiet(collect(again, reranking("sliding", topics), driver=driver))
    assert {k: r for k, (r, _) in done.items()} == {k: r for k, (r, _) in expected.items()}
    assert kept + meter.requests == sum(tally.asks for _, tally in expected.values())
    journal.close()


def test_ctrl_c_leaves_a_usable_journal(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    script = tmp_path / "child.py"
    script.write_text(
        f"""
import signal
import sys
from pathlib import Path
# A job in the background is started with interrupts ignored, and so are its children.
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from tests.test_engine import Slow, collect, collection, reranking
from llmrank.backends.wrappers import Cached
from llmrank.engine import run_sync
from llmrank.store import Journal
topics, qrels = collection(8, 40)
journal = Journal(Path({str(path)!r}))
try:
    run_sync(collect(Cached(Slow(qrels, 0.4), journal), reranking("sliding", topics)))
except KeyboardInterrupt:
    journal.close()
    sys.exit(77)
"""
    )
    child = subprocess.Popen([sys.executable, str(script)], stderr=subprocess.PIPE)
    journal = Journal(path)
    patience = time.monotonic() + 60
    while not len(journal) and time.monotonic() < patience:
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGINT)
    _, errors = child.communicate(timeout=30)
    assert (child.returncode, errors) == (77, b"")
    topics, qrels = collection(8, 40)
    stored = len(journal)
    done = quiet(collect(Cached(Oracle(qrels), journal), reranking("sliding", topics)))
    assert sum(tally.reused for _, tally in done.values()) == stored
    assert 0 < stored < sum(tally.asks for _, tally in done.values())
    journal.close()


async def seven() -> int:
    await asyncio.sleep(0)
    return 7


async def failing() -> int:
    raise BackendError("no")


def test_run_sync_outside_and_inside_a_running_loop() -> None:
    async def notebook_cell() -> int:
        return run_sync(seven())

    assert run_sync(seven()) == 7
    assert asyncio.run(notebook_cell()) == 7
    with pytest.raises(BackendError):
        run_sync(failing())


def test_run_async_from_several_loops_at_once() -> None:
    results: list[int] = []
    threads = [
        threading.Thread(target=lambda: results.append(asyncio.run(run_async(seven()))))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert results == [7] * 8
    with pytest.raises(BackendError):
        asyncio.run(run_async(failing()))


def test_cancelling_the_wait_cancels_the_work() -> None:
    ended = threading.Event()

    async def long() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    async def main() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(run_async(long()), 0.05)

    asyncio.run(main())
    assert ended.wait(5)


def test_interrupted_work_has_ended_when_the_caller_is_told() -> None:
    ended = False

    async def busy() -> None:
        nonlocal ended
        try:
            await asyncio.sleep(0.05)
            os.kill(os.getpid(), signal.SIGUSR1)
            await asyncio.sleep(60)
        finally:
            time.sleep(0.05)
            ended = True

    def interrupt(*_: object) -> None:
        raise InterruptedError("now")

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with pytest.raises(InterruptedError, match="now"):
            run_sync(busy())
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert ended


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()])
def test_leaving_from_a_callback_reaches_the_caller(error: BaseException) -> None:
    def finished(*_: object) -> None:
        raise error

    outcome: list[BaseException] = []

    def call() -> None:
        engine = Engine(Echo(), Words(), in_flight=4)
        try:
            run_sync(engine.run([(1, chain("a", 1))], finished))
        except BaseException as caught:  # noqa: BLE001 - compared below
            outcome.append(caught)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(5)
    assert [type(caught) for caught in outcome] == [type(error)]
    assert run_sync(seven()) == 7


def test_a_call_from_a_callback_is_refused_rather_than_waiting_for_itself() -> None:
    def finished(_key: int, _result: object, _tally: Tally) -> None:
        run_sync(seven())

    def plan() -> Plan[None]:
        yield from ask_all([Grade(Query("q", "q"), Document("d", "d"))])

    engine = Engine(Oracle({}), PromptSet())
    with pytest.raises(RuntimeError, match="callbacks"):
        run_sync(engine.run([(0, plan())], finished))


def test_run_sync_works_in_a_forked_process() -> None:
    assert run_sync(seven()) == 7
    reading, writing = os.pipe()
    if not (child := os.fork()):
        os.write(writing, str(run_sync(seven())).encode())
        os._exit(0)
    patience = time.monotonic() + 10
    while not os.waitpid(child, os.WNOHANG)[0]:
        if time.monotonic() > patience:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.005)
    os.close(writing)
    assert os.read(reading, 9) == b"7"
    os.close(reading)


@pytest.mark.parametrize("driver", DRIVERS)
def test_an_ask_that_cannot_fit_fails_alone(driver: str) -> None:
    class Long(Words):
        def render(self, item: Ask[Any]) -> Request:
            if item.sample == 1:
                raise TooLong("query 'q': 9,000 tokens", remedy="show less")
            return super().render(item)

    found: list[list[Answer[Any]]] = []

    def plan() -> Plan[list[Answer[Any]]]:
        return (yield from ask_all([Write("t", (), sample=sample) for sample in range(3)]))

    engine = Engine(Echo(), Long())
    asyncio.run(getattr(engine, driver)([("q", plan())], lambda key, got, tally: found.append(got)))
    assert [answer.status for answer in found[0]] == [Status.OK, Status.FAILED, Status.OK]
    assert "9,000 tokens" in found[0][1].problem


@pytest.mark.parametrize("driver", DRIVERS)
def test_rendering_that_waits_for_a_server_is_not_done_on_the_loop(driver: str) -> None:
    class Waiting(Words):
        waits = True

        def render(self, item: Ask[Any]) -> Request:
            with pytest.raises(RuntimeError):
                asyncio.get_running_loop()
            return super().render(item)

    def plan() -> Plan[list[Answer[Any]]]:
        return (yield from ask_all([Write("t", ())]))

    found: list[list[Answer[Any]]] = []
    engine = Engine(Echo(), Waiting())
    asyncio.run(getattr(engine, driver)([("q", plan())], lambda key, got, tally: found.append(got)))
    assert found[0][0].status is Status.OK
