from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrank import expand
from llmrank.errors import SpecError
from llmrank.expand import Expansion, NoIndex
from llmrank.expand.generative import GRF_TASKS, HYDE_TASKS
from llmrank.plan import Answer, Ask, Drive, Embed, Write, drive
from llmrank.prompts import PromptSet
from llmrank.types import Query, Status
from tests.expand.first_stages import BM25, DENSE
from tests.expand.models import LOST, QUERY, Model, Tasks, lengths, lexical

DOUGH = {
    "yeast": "yeast feeds on sugar in the dough",
    "gluten": "gluten holds the gas of the yeast",
    "oven": "the oven sets the bread",
}


def _run(name: str, model: Callable[[Ask[Any]], Answer[Any]]) -> Expansion:
    expander = expand.parse(name)
    return drive(expander.plan(QUERY, NoIndex(frozenset(expander.kinds[:1]))), model)


def test_query2doc_keeps_every_sample() -> None:
    model = Model("one", None, "three")
    found = _run("query2doc(n=3, repeat=4)", model)
    assert found.texts == ("one", "three")
    assert [view.texts for view in found.views] == [((QUERY.text, 4), ("one", 1), ("three", 1))]
    assert found.expanded
    assert [answer.status for answer in found.answers] == ["ok", "malformed", "ok"]
    assert [(type(item), item.sample) for item in model.asks] == [
        (Write, 0),
        (Write, 1),
        (Write, 2),
    ]


def test_samples_are_asked_in_one_round() -> None:
    assert len(Drive(expand.parse("query2doc(n=3)").plan(QUERY, NoIndex(BM25))).start()) == 3
    assert len(Drive(expand.parse("hyde(n=5)").plan(QUERY, NoIndex(DENSE))).start()) == 5


@given(st.lists(st.none() | st.text(min_size=1, max_size=30), min_size=1, max_size=8))
def test_hyde_is_the_mean_of_the_query_and_what_is_usable(texts: list[str | None]) -> None:
    found = _run(f"hyde(n={len(texts)})", Model(*texts))
    usable = [text for text in texts if text is not None]
    assert found.texts == tuple(usable)
    assert found.expanded is bool(usable)
    ((vector,),) = [[view.vector for view in found.views]]
    assert vector is not None
    expected = lengths([QUERY.text, *usable]).mean(axis=0, keepdims=True)
    np.testing.assert_allclose(vector, expected, rtol=1e-6)
    assert vector.dtype == np.float32


@pytest.mark.parametrize("status", LOST)
def test_without_a_text_the_plain_query_serves(status: Status) -> None:
    for name in ("query2doc", "hyde(n=1)"):
        found = _run(name, Model(None, status=status))
        assert (found.expanded, found.texts) == (False, ())
        assert [answer.status for answer in found.answers] == [status]
    assert found.views[0].vector is not None
    np.testing.assert_array_equal(found.views[0].vector, lengths([QUERY.text]))


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

    assert not _run("hyde(n=1)", judge).expanded


def test_a_query_without_a_vector_finds_nothing_and_says_why() -> None:
    def judge(item: Ask[Any]) -> Answer[Any]:
        if isinstance(item, Embed):
            return Answer(status=Status.FAILED, problem="no server")
        return Model("one")(item)

    found = _run("hyde(n=1)", judge)
    assert (found.expanded, found.views) == (False, ())
    assert "could not be embedded" in found.note


def test_query2doc_embeds_query_and_texts_as_one() -> None:
    model = Model("one")
    plan = expand.parse("query2doc").plan(QUERY, NoIndex(DENSE))
    (view,) = drive(plan, model).views
    assert view.vector is not None
    np.testing.assert_array_equal(view.vector, lengths([f"{QUERY.text}\none"]))


@pytest.mark.parametrize("task", HYDE_TASKS)
@pytest.mark.parametrize("language", ["any", "Swahili"])
def test_hyde_is_asked_for_by_task_and_language(task: str, language: str) -> None:
    expander = expand.parse(f"hyde(n=1, task={task}, language={language})")
    model = Model("one")
    drive(expander.plan(QUERY, NoIndex(DENSE)), model)
    asked = model.asks[0]
    assert isinstance(asked, Write)
    assert [need.task for need in expander.needs(frozenset())] == [asked.task]
    prompt = PromptSet().render(asked).messages[-1].content
    assert QUERY.text in prompt
    assert ("in Swahili" in prompt) == (language == "Swahili")
    assert ("\n\n\n" in prompt) is False
    special = {"claim": "refutes", "argument": "against", "entity": "encyclopedia", "any": "text"}
    assert special.get(task, "that answers" if task != "news" else "news") in prompt


def test_grf_by_hand() -> None:
    said = {"grf_facts": "1. Yeast eats sugar.\n2. Yeast makes gas.", "grf_summary": "yeast"}
    model = Tasks(said)
    plan = expand.parse("grf(tasks=facts+summary+essay, terms=2, original_query_weight=0.75)")
    found = drive(plan.plan(Query("q", "yeast dough rise why"), lexical(DOUGH)), model)
    assert model.tasks == ["grf_facts", "grf_summary", "grf_essay"]
    assert found.texts == ("Yeast eats sugar.\nYeast makes gas.", "yeast")
    # In the index are yeast three times, then gas and sugar once each: gas is first by name. The
    # terms of the query count whether they are in the index or not.
    (view,) = found.views
    assert view.terms == pytest.approx(
        {
            "yeast": 0.75 / 4 + 0.25 * 3 / 4,
            "dough": 0.75 / 4,
            "rise": 0.75 / 4,
            "why": 0.75 / 4,
            "ga": 0.25 * 1 / 4,
        }
    )
    assert [answer.status for answer in found.answers] == ["ok", "ok", "malformed"]


def test_grf_asks_for_everything_in_one_round() -> None:
    first = lexical(DOUGH)
    tickets = Drive(expand.parse("grf").plan(QUERY, first)).start()
    inputs = (("query", QUERY.text),)
    assert [ticket.ask for ticket in tickets] == [
        Write(f"grf_{name}", inputs) for name in GRF_TASKS
    ]


def test_grf_weights_sum_to_one() -> None:
    said = dict.fromkeys([f"grf_{name}" for name in GRF_TASKS], "* gas, sugar, oven, bread")
    for weight in (0, 0.3, 1):
        for terms in (1, 3, 9):
            name = f"grf(terms={terms}, original_query_weight={weight})"
            plan = expand.parse(name).plan(QUERY, lexical(DOUGH))
            (view,) = drive(plan, Tasks(said)).views
            assert sum(view.terms.values()) == pytest.approx(1)


@pytest.mark.parametrize("text", [None, "1.\n2.\n3.", "nothing that any document says"])
def test_grf_without_a_known_term_leaves_the_query(text: str | None) -> None:
    first = lexical({"a": "moon", "b": "tide"})
    model = Tasks({} if text is None else {"grf_facts": text})
    found = drive(expand.parse("grf(tasks=facts)").plan(QUERY, first), model)
    assert (found.expanded, found.views[0].texts) == (False, ((QUERY.text, 1.0),))


# RM3 takes terms of at most a tenth of the documents.
RISING = {f"{i:02}": "filler" for i in range(40)} | {
    "carbon": "dough rises by carbon dioxide",
    "knead": "kneaded dough holds carbon dioxide",
    "yeast": "yeast feeds on sugar",
}


def test_grf_with_prf_fuses_what_both_find() -> None:
    first = lexical(RISING, depth=50)
    alone, fed = (
        drive(expand.parse(name).plan(QUERY, first), Tasks({"grf_facts": "yeast and sugar"}))
        for name in ("grf(tasks=facts)", "rm3")
    )
    model = Tasks({"grf_facts": "yeast and sugar"})
    both = drive(expand.parse("grf(tasks=facts, prf=true)").plan(QUERY, first), model)
    assert model.tasks == ["grf_facts"]
    assert both.views == (*alone.views, *fed.views)
    assert (both.texts, both.expanded, both.note) == (alone.texts, True, "")
    ranks = [
        {name: rank for rank, (name, _) in enumerate(first.search(one, 50), start=1)}
        for one in (alone, fed)
    ]
    assert [sorted(found) for found in ranks] == [["carbon", "knead", "yeast"], ["carbon", "knead"]]
    expected = {
        name: sum(1 / (60 + found[name]) for found in ranks if name in found) for name in ranks[0]
    }
    assert dict(first.search(both, 50)) == pytest.approx(expected)


def test_grf_with_prf_is_served_by_either_alone() -> None:
    first = lexical(RISING)
    grf = expand.parse("grf(tasks=facts, prf=true)")
    moon = drive(grf.plan(Query("q", "moon"), first), Tasks({"grf_facts": "sugar"}))
    ((view,), note) = moon.views, moon.note
    assert (set(view.terms), moon.expanded) == ({"moon", "sugar"}, True)
    assert note == "rm3: nothing found"
    dough = drive(grf.plan(Query("q", "dough"), first), Tasks({}))
    (view,) = dough.views
    assert {"dough", "carbon", "dioxid"} <= set(view.terms)
    assert (dough.texts, dough.expanded, dough.note) == ((), True, "no usable text, rm3 alone")
    neither = drive(grf.plan(Query("q", "moon"), first), Tasks({}))
    assert (neither.expanded, neither.views[0].texts) == (False, (("moon", 1.0),))
    assert neither.note == "no usable text; rm3: nothing found"


def test_grf_pays_for_nothing_without_an_index() -> None:
    model = Tasks({})
    with pytest.raises(SpecError, match="needs documents"):
        _run("grf", model)
    assert model.asks == []


def test_keywords_are_added_to_the_repeated_query() -> None:
    model = Tasks({"grf_keywords": "yeast, gas", "grf_entities": "Here they are:\n- Gas\n- Louis"})
    found = _run("keywords(tasks=keywords+entities, repeat=2)", model)
    assert found.texts == ("yeast", "gas", "Louis")
    (view,) = found.views
    assert view.texts == ((QUERY.text, 2), ("yeast", 1), ("gas", 1), ("Louis", 1))


@pytest.mark.parametrize(
    ("name", "tasks"),
    [
        ("keywords", ["grf_keywords"]),
        ("keywords(tasks=all)", ["grf_keywords", "grf_entities"]),
        ("grf(tasks=news)", ["grf_news"]),
        ("hyde", ["hyde"]),
        ("hyde(language=Farsi)", ["hyde_task"]),
    ],
)
def test_needs_are_what_is_asked(name: str, tasks: list[str]) -> None:
    assert [need.task for need in expand.parse(name).needs(frozenset())] == tasks


@pytest.mark.parametrize(
    "text",
    [
        "hyde(task=poem)",
        "hyde(language= )",
        "grf(tasks=facts+poem)",
        "grf(tasks=facts+facts)",
        "grf(tasks=)",
        "grf(terms=0)",
        "grf(original_query_weight=1.5)",
        "grf(original_query_weight=nan)",
        "keywords(tasks=essay)",
        "keywords(repeat=0)",
    ],
)
def test_wrong_parameters(text: str) -> None:
    with pytest.raises(SpecError):
        expand.parse(text)
