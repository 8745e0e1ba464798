from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrank.plan import (
    Answer,
    Ask,
    Drive,
    Grade,
    Grades,
    LogProb,
    Order,
    Permutation,
    Pick,
    Plan,
    Ticket,
    ask,
    ask_all,
    drive,
    persistent,
    staged,
    together,
)
from llmrank.types import Document, Query, Status
from tests.effort import examples

QUERY = Query("q", "what is a plan")


def _grade(name: str) -> Grade:
    return Grade(QUERY, Document(name, name))


def _value(item: Ask[Any]) -> Answer[Any]:
    """A different value for every document and draw."""
    assert isinstance(item, Grade)
    mass = (sum(map(ord, item.doc.id)) + 7 * item.sample) % 97 / 97
    return Answer(status=Status.OK, value=Grades((mass, 1 - mass), 1.0))


def _first(answer: Answer[Grades]) -> float:
    assert answer.value is not None
    return answer.value.probabilities[0]


@dataclass(frozen=True)
class Shape:
    """A plan as data: its rounds one after another, each of asks (None) and sub-plans."""

    rounds: tuple[tuple[Shape | None, ...], ...]

    def critical_path(self) -> int:
        """Rounds of asks that have to follow one another."""
        return sum(
            max(1 if item is None else item.critical_path() for item in items)
            for items in self.rounds
        )

    def plan(self, name: str) -> Plan[float]:
        total = 0.0
        for number, items in enumerate(self.rounds):
            made = [
                _grade(f"{name}.{number}.{slot}/{total:.6f}")
                if item is None
                else item.plan(f"{name}.{number}.{slot}")
                for slot, item in enumerate(items)
            ]
            results: Sequence[Any] = yield made
            values = [r if isinstance(r, float) else _first(r) for r in results]
            total = total * 0.7 + sum(value * (i + 1) for i, value in enumerate(values))
        return total


def _round(items: st.SearchStrategy[Shape | None]) -> st.SearchStrategy[Shape]:
    return st.lists(st.lists(items, min_size=1, max_size=4).map(tuple), max_size=3).map(
        lambda rounds: Shape(tuple(rounds))
    )


SHAPES = st.recursive(st.none(), lambda items: _round(st.none() | items), max_leaves=12).map(
    lambda shape: shape or Shape(())
)


def _in_any_order(plan: Plan[float], random: Random) -> tuple[float, int, int]:
    """Result, rounds and number of asks when the open tickets are answered in a random order."""
    running = Drive(plan)
    tickets = running.start()
    asked = 0
    while tickets:
        ticket = tickets.pop(random.randrange(len(tickets)))
        tickets += running.answer(ticket, _value(ticket.ask))
        asked += 1
    return running.result, running.rounds, asked


@examples(150)
@given(SHAPES, st.randoms(use_true_random=False))
def test_the_order_of_the_answers_changes_nothing(shape: Shape, random: Random) -> None:
    expected = drive(shape.plan("p"), _value)
    assert {_in_any_order(shape.plan("p"), random)[0] for _ in range(3)} == {expected}


@examples(150)
@given(SHAPES, st.randoms(use_true_random=False))
def test_rounds_are_the_critical_path(shape: Shape, random: Random) -> None:
    result, rounds, _ = _in_any_order(shape.plan("p"), random)
    assert rounds == shape.critical_path()
    insisted = _in_any_order(persistent(shape.plan("p")), random)
    assert insisted[:2] == (result, rounds)


def test_a_plan_that_asks_nothing_is_done_at_once() -> None:
    running = Drive(ask_all(list[Ask[Grades]]()))
    assert running.start() == []
    assert (running.done, running.result, running.rounds) == (True, [], 0)
    assert drive(together(list[Plan[float]]()), _value) == []


def test_the_result_is_not_there_before_the_end() -> None:
    running = Drive(ask(_grade("a")))
    running.start()
    with pytest.raises(RuntimeError, match="waiting"):
        _ = running.result


def test_sub_plans_that_ask_nothing_fill_their_places() -> None:
    def nothing(value: float) -> Plan[float]:
        yield from ask_all(list[Ask[Grades]]())
        return value

    def plan() -> Plan[list[Any]]:
        results: Sequence[Any] = yield (nothing(1.0), _grade("a"), nothing(2.0))
        second = yield from together([nothing(3.0), nothing(4.0)])
        return [results[0], results[2], *second]

    running = Drive(plan())
    (ticket,) = running.start()
    assert running.answer(ticket, _value(ticket.ask)) == []
    assert running.result == [1.0, 2.0, 3.0, 4.0]
    assert running.rounds == 1


def test_a_failing_plan_raises_its_own_error() -> None:
    def inner() -> Plan[float]:
        yield (_grade("a"),)
        raise KeyError("inner")

    def outer() -> Plan[list[float]]:
        return (yield from together([inner()]))

    for plan in (outer(), persistent(outer())):
        running = Drive(plan)
        (ticket,) = running.start()
        with pytest.raises(KeyError, match="inner"):
            running.answer(ticket, _value(ticket.ask))
        assert not running.done


@pytest.mark.parametrize("wrapped", [False, True])
def test_an_empty_round_is_an_error(wrapped: bool) -> None:
    def plan() -> Plan[None]:
        yield ()

    with pytest.raises(ValueError, match="empty round"):
        Drive(persistent(plan()) if wrapped else plan()).start()


def _order(name: str) -> Order:
    return Order(QUERY, (Document(name, name),))


def _outcome(status: Status, problem: str = "") -> Answer[Permutation]:
    usable = status in (Status.OK, Status.REPAIRED, Status.PARTIAL)
    return Answer(status=status, value=Permutation((0,)) if usable else None, problem=problem)


@pytest.mark.parametrize("status", list(Status))
@pytest.mark.parametrize("attempts", [1, 2, 4])
def test_only_replies_without_a_value_are_asked_for_again(status: Status, attempts: int) -> None:
    seen: list[Ask[Any]] = []

    def judge(item: Ask[Any]) -> Answer[Any]:
        seen.append(item)
        return _outcome(status, f"problem {len(seen)}")

    answer = drive(persistent(ask(_order("a")), attempts), judge)
    again = status in (Status.MALFORMED, Status.REFUSED, Status.TRUNCATED)
    assert len(seen) == (attempts if again else 1)
    assert answer.problem == f"problem {len(seen)}"
    told = ["", *(f"problem {i}" for i in range(1, len(seen)))]
    assert [item.problem for item in seen] == told
    assert len({item.sample for item in seen}) == len(seen)


def test_a_truncated_reply_with_a_value_is_kept() -> None:
    kept = Answer(status=Status.TRUNCATED, value=Permutation((0,)))
    running = Drive(persistent(ask(_order("a")), 5))
    (ticket,) = running.start()
    assert running.answer(ticket, kept) == []
    assert running.result is kept


def test_asking_stops_as_soon_as_there_is_a_value() -> None:
    replies = iter([_outcome(Status.MALFORMED), _outcome(Status.OK), _outcome(Status.MALFORMED)])
    running = Drive(persistent(ask(_order("a")), 5))
    tickets = running.start()
    while tickets:
        tickets = running.answer(tickets[0], next(replies))
    assert running.result.status is Status.OK
    assert running.rounds == 2


def test_persistence_reaches_sub_plans_and_their_neighbours_do_not_wait() -> None:
    def pair(name: str) -> Plan[list[Answer[Permutation]]]:
        first = yield from ask(_order(f"{name}1"))
        second = yield from ask(_order(f"{name}2"))
        return [first, second]

    asked: list[str] = []

    def judge(item: Ask[Any]) -> Answer[Any]:
        assert isinstance(item, Order)
        asked.append(item.docs[0].id)
        bad = item.docs[0].id == "a1" and not item.problem
        return _outcome(Status.MALFORMED if bad else Status.OK, "bad")

    running = Drive(persistent(together([pair("a"), pair("b")])))
    tickets: list[Ticket] = running.start()
    while tickets:
        answered = [(ticket, judge(ticket.ask)) for ticket in tickets]
        tickets = [new for ticket, answer in answered for new in running.answer(ticket, answer)]
    assert running.rounds == 3
    assert asked == ["a1", "b1", "a1", "b2", "a2"]


def test_deep_nesting_is_no_problem() -> None:
    def nested(depth: int) -> Plan[int]:
        if not depth:
            yield from ask(_grade("bottom"))
            return 0
        (below,) = yield from together([nested(depth - 1)])
        return below + 1

    running = Drive(nested(5000))
    (ticket,) = running.start()
    running.answer(ticket, _value(ticket.ask))
    assert (running.result, running.rounds) == (5000, 1)


def test_log_probability_per_token() -> None:
    assert LogProb(-6.0, 3).mean == -2.0
    assert LogProb(-6.0, 0).mean == -6.0


@pytest.mark.parametrize("item", [_grade("a"), Pick(QUERY, (Document("a", "a"),), by="labels")])
def test_a_probability_is_not_asked_for_again(item: Ask[Any]) -> None:
    answer: Answer[Any] = Answer(status=Status.MALFORMED, problem="no mass")
    asked: list[Ask[Any]] = []

    def judge(item: Ask[Any]) -> Answer[Any]:
        asked.append(item)
        return answer

    assert drive(persistent(ask(item)), judge) is answer
    assert asked == [item]


def test_stages_mark_every_ask_and_change_nothing_else() -> None:
    inner = together([ask(_grade("a")), ask(_order("b"))])
    running = Drive(staged(inner, "first"))
    assert [ticket.ask for ticket in running.start()] == [
        replace(_grade("a"), stage="first"),
        replace(_order("b"), stage="first"),
    ]
