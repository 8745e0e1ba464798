from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from llmrank.errors import InputError
from llmrank.retrieve import ask_engine
from llmrank.types import Query

Scored = tuple[str, float]
QUERIES: list[str | Query] = [Query("q1", "cats"), "dogs"]


def test_hits_are_put_in_order_and_cut() -> None:
    def engine(texts: Sequence[str], k: int) -> list[list[Scored]]:
        assert (list(texts), k) == (["cats", "dogs"], 2)
        return [[("a", 1), ("c", 3.5), ("b", 3.5)], []]

    assert ask_engine(engine, QUERIES, 2) == [[("c", 3.5), ("b", 3.5)], []]


def test_numbers_of_numpy_and_any_iterables_do() -> None:
    def engine(texts: Sequence[str], k: int) -> Any:  # noqa: ANN401
        return (zip(["a", "b"], np.array([1, 2], dtype=np.float32), strict=True) for _ in texts)

    assert ask_engine(engine, QUERIES, 1) == [[("b", 2.0)]] * 2


def test_without_queries_it_is_not_asked() -> None:
    def engine(texts: Sequence[str], k: int) -> list[list[Scored]]:
        raise AssertionError

    assert ask_engine(engine, [], 3) == []


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ([[]], "1 lists for 2 queries"),
        ([[], [], []], "3 lists for 2 queries"),
        ([[("a", 1.0)], [("a", 2.0), ("b", 1.0), ("a", 0.5)]], "query 'dogs': .* 'a' twice"),
        ([[("a", math.nan)], []], "query 'q1': .* 'a' the score nan"),
        ([[], [("b", math.inf)]], "query 'dogs': .* 'b' the score inf"),
        ([[(7, 1.0)], []], "query 'q1': .* the id 7"),
        ([["a"], []], r"query 'q1': .* 'a' where \(id, score\)"),
        ([[("a", "much")], []], r"query 'q1': .* where \(id, score\)"),
        ([[("a", 1.0, 2)], []], r"query 'q1': .* where \(id, score\)"),
        (None, "the engine gave None where a list was due"),
        ([[], None], "query 'dogs': the engine gave None where a list was due"),
    ],
)
def test_what_is_wrong_is_named(given: Any, told: str) -> None:  # noqa: ANN401
    with pytest.raises(InputError, match=told):
        ask_engine(lambda texts, k: given, QUERIES, 5)


def test_depth_is_checked() -> None:
    with pytest.raises(InputError, match="k is 0"):
        ask_engine(lambda texts, k: [[]], ["a"], 0)
