"""Graded relevance: scales, scores and what a failed call does."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrank.errors import SpecError
from llmrank.plan import Answer, Ask, Drive, Grade, Grades, drive
from llmrank.rerank.pointwise import grade, scale
from llmrank.types import Status
from tests.effort import sizes
from tests.rerank.judges import QUERY, Failing, Perfect, best_first, candidates, grades


@pytest.mark.parametrize("labels", ["4", "2", "1-5", "high/some/none"])
@pytest.mark.parametrize("score", ["expected", "peak"])
def test_documents_come_in_the_order_of_their_grades(labels: str, score: str) -> None:
    for count in sizes():
        judge = Perfect(found := grades(count))
        plan = grade(QUERY, candidates(count), labels=labels, score=score)
        ordering = drive(plan, judge)
        assert list(ordering.order) == best_first(found)
        assert len(judge.asks) == count
        assert None not in ordering.scores


def test_all_documents_are_asked_for_in_one_round() -> None:
    running = Drive(grade(QUERY, candidates(9)))
    judge = Perfect(range(9))
    for ticket in running.start():
        running.answer(ticket, judge(ticket.ask))
    assert running.done
    assert running.rounds == 1


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ("2", {"1": 1, "0": 0}),
        ("4", {"3": 3, "2": 2, "1": 1, "0": 0}),
        ("1-5", {"5": 5, "4": 4, "3": 3, "2": 2, "1": 1}),
        ("0-1", {"1": 1, "0": 0}),
        ("high/some/none", {"high": 2, "some": 1, "none": 0}),
        (" Perfect / Bad ", {"Perfect": 1, "Bad": 0}),
        ("A/B/C", {"A": 2, "B": 1, "C": 0}),
        ("9/5/1", {"9": 2, "5": 1, "1": 0}),
    ],
)
def test_a_scale_is_a_count_a_range_or_names(labels: str, expected: dict[str, int]) -> None:
    assert list(scale(labels).items()) == list(expected.items())


def test_ten_grades_are_the_most_that_digits_tell_apart() -> None:
    assert list(scale("10")) == list("9876543210")


@pytest.mark.parametrize(
    "labels",
    ["", "0", "1", "11", "5-1", "3-3", "1-10", "-3", "1.5", "yes", "a/", "/", "a/a", "Yes/YES",
     "10/5/1", "٤", "4-", "1-2-3"],
)  # fmt: skip
def test_labels_that_cannot_be_told_apart_are_refused_at_once(labels: str) -> None:
    with pytest.raises(SpecError, match="labels"):
        next(grade(QUERY, (), labels=labels))


def test_a_score_that_is_none_is_refused_at_once() -> None:
    with pytest.raises(SpecError, match="expected or peak"):
        next(grade(QUERY, (), score="likely"))


def answering(value: Grades) -> Any:  # noqa: ANN401 - a judge
    """A judge that gives one answer, and checks what was asked."""

    def judge(item: Ask[Any]) -> Answer[Any]:
        assert isinstance(item, Grade)
        assert item.labels == ("5", "4", "3", "2", "1")
        return Answer(status=Status.OK, value=value)

    return judge


def test_scores_are_the_mean_grade_or_the_probability_of_the_best() -> None:
    judge = answering(Grades((0.5, 0.25, 0.25, 0.0, 0.0), 0.8))
    expected = drive(grade(QUERY, candidates(1), labels="1-5"), judge)
    assert expected.scores == pytest.approx([2.5 + 1 + 0.75])
    peak = drive(grade(QUERY, candidates(1), labels="1-5", score="peak"), judge)
    assert peak.scores == pytest.approx([0.4])


@given(st.integers(0, 30), st.randoms(use_true_random=False))
def test_a_failed_call_moves_nobody(count: int, random: Random) -> None:
    failing = {i for i in range(count) if random.random() < 0.3}
    found = grades(count)
    ordering = drive(grade(QUERY, candidates(count)), Failing(found, failing))
    assert sorted(ordering.order) == list(range(count))
    for i in failing:
        assert ordering.order[i] == i
        assert ordering.scores[i] is None
    kept = [i for i in ordering.order if i not in failing]
    assert kept == [i for i in best_first(found) if i not in failing]


def test_ties_keep_the_order_of_the_first_stage() -> None:
    ordering = drive(grade(QUERY, candidates(5)), Perfect([1, 2, 1, 2, 1]))
    assert ordering.order == (1, 3, 0, 2, 4)
