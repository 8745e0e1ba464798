from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrank import expand
from llmrank.errors import BackendError, SpecError
from llmrank.expand import Expander, Expansion
from llmrank.plan import Answer, Ask, Drive, Embed, Plan, Vectors, Write, Written, drive
from llmrank.types import Query, Status

QUERY = Query("q", "why does dough rise")
LOST = (Status.MALFORMED, Status.REFUSED, Status.FAILED, Status.UNASKED)


def _vectors(texts: Sequence[str]) -> Vectors:
    """Two dimensions: the length of a text, and 1."""
    return np.array([[len(text), 1.0] for text in texts], dtype=np.float32)


class Model:
    """Writes the given texts, one a sample; None is a reply without anything usable."""

    def __init__(self, *texts: str | None, status: Status = Status.MALFORMED) -> None:
        self.texts, self.status = texts, status
        self.asks: list[Ask[Any]] = []

    def __call__(self, item: Ask[Any]) -> Answer[Any]:
        self.asks.append(item)
        if isinstance(item, Embed):
            return Answer(status=Status.OK, value=_vectors(item.texts))
        text = self.texts[item.sample]
        if text is None:
            return Answer(status=self.status, problem="nothing")
        return Answer(status=Status.OK, value=Written(text))


def _run(name: str, model: Model) -> Expansion:
    plan: Plan[Expansion] = expand.parse(name).plan(QUERY)
    return drive(plan, model)


def test_query2doc_keeps_every_sample() -> None:
    model = Model("one", None, "three")
    found = _run("query2doc(n=3, repeat=4)", model)
    assert (found.texts, found.repeat, found.vector) == (("one", "three"), 4, None)
    assert found.expanded
    assert [answer.status for answer in found.answers] == ["ok", "malformed", "ok"]
    assert [(type(item), item.sample) for item in model.asks] == [
        (Write, 0),
        (Write, 1),
        (Write, 2),
    ]


def test_samples_are_asked_in_one_round() -> None:
    assert len(Drive(expand.parse("query2doc(n=3)").plan(QUERY)).start()) == 3
    assert len(Drive(expand.parse("hyde(n=5)").plan(QUERY)).start()) == 5


@given(st.lists(st.none() | st.text(min_size=1, max_size=30), min_size=1, max_size=8))
def test_hyde_is_the_mean_of_the_query_and_what_is_usable(texts: list[str | None]) -> None:
    found = _run(f"hyde(n={len(texts)})", Model(*texts))
    usable = [text for text in texts if text is not None]
    assert found.texts == tuple(usable)
    assert found.expanded is bool(usable)
    assert found.vector is not None
    expected = _vectors([QUERY.text, *usable]).mean(axis=0, keepdims=True)
    np.testing.assert_allclose(found.vector, expected, rtol=1e-6)
    assert found.vector.dtype == np.float32


@pytest.mark.parametrize("status", LOST)
def test_without_a_text_the_plain_query_serves(status: Status) -> None:
    for name in ("query2doc", "hyde(n=1)"):
        found = _run(name, Model(None, status=status))
        assert (found.expanded, found.texts) == (False, ())
        assert [answer.status for answer in found.answers] == [status]
    assert found.vector is not None
    np.testing.assert_array_equal(found.vector, _vectors([QUERY.text]))


def test_query_and_texts_are_embedded_in_their_roles() -> None:
    model = Model("one", "two")
    _run("hyde(n=2)", model)
    embeds = [item for item in model.asks if isinstance(item, Embed)]
    assert [(item.role, item.texts) for item in embeds] == [
        ("query", (QUERY.text,)),
        ("document", ("one", "two")),
    ]


def test_texts_without_vectors_leave_the_query() -> None:
    def judge(item: Ask[Any]) -> Answer[Any]:
        if isinstance(item, Embed) and item.role == "document":
            return Answer(status=Status.FAILED, problem="too long")
        return Model("one")(item)

    found = drive(expand.parse("hyde(n=1)").plan(QUERY), judge)
    assert not found.expanded


def test_a_query_without_a_vector_is_an_error() -> None:
    def judge(item: Ask[Any]) -> Answer[Any]:
        if isinstance(item, Embed):
            return Answer(status=Status.FAILED, problem="no server")
        return Model("one")(item)

    with pytest.raises(BackendError, match="no server"):
        drive(expand.parse("hyde(n=1)").plan(QUERY), judge)


@pytest.mark.parametrize("name", expand.METHODS)
def test_names_are_read_back(name: str) -> None:
    expander = Expander(name, {"n": 3})
    assert str(expand.parse(str(expander))) == str(expander)
    assert "n=3" in str(expander)
    assert str(expand.parse(name)) == str(Expander(name))


@pytest.mark.parametrize(
    "text", ["nosuch", "query2doc(m=1)", "query2doc(n=x)", "hyde@5", "", "hyde(n=1", "hyde(n=0)"]
)
def test_what_cannot_be_read(text: str) -> None:
    with pytest.raises(SpecError):
        next(expand.parse(text).plan(QUERY))
