from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrank import expand
from llmrank.errors import SpecError
from llmrank.expand import Expansion, FirstStage, NoIndex, Scored, View
from llmrank.expand.propositions import proposition_views
from llmrank.expand.reading import WORDS
from llmrank.expand.scripts import in_script_of
from llmrank.plan import Answer, Ask, Embed, Write, drive
from llmrank.types import Query, Status
from tests.expand.first_stages import BM25, DENSE, Toy
from tests.expand.models import QUERY, Tasks, lexical

LONG = " ".join(f"word{number}" for number in range(99))
THREE = "Here are three:\n1. yeast in dough\n2. Gluten nets\n3. Why does dough rise?\n4. one more"


def _run(
    name: str, model: Callable[[Ask[Any]], Answer[Any]], first: FirstStage | None = None
) -> Expansion:
    return drive(expand.parse(name).plan(QUERY, first or NoIndex(BM25)), model)


@pytest.mark.parametrize(
    ("name", "constant"),
    [
        ("multi_query", 60),
        ("subqueries", 60),
        ("multi_query(constant=10)", 10),
        ("subqueries(constant=0)", 0),
    ],
)
def test_each_query_is_searched_beside_the_first(name: str, constant: float) -> None:
    task = name.partition("(")[0]
    model = Tasks({task: THREE})
    found = _run(name, model)
    assert found.texts == ("yeast in dough", "Gluten nets", "one more")
    assert [view.texts for view in found.views] == [
        ((text, 1.0),) for text in (QUERY.text, *found.texts)
    ]
    assert found.constant == constant
    assert model.asks == [Write(task, (("query", QUERY.text), ("n", "3")))]


def test_no_more_than_n() -> None:
    assert _run("multi_query(n=1)", Tasks({"multi_query": THREE})).texts == ("yeast in dough",)


def test_rankings_of_queries_are_fused_by_rank() -> None:
    first = lexical({"rise": "why dough rise", "yeast": "yeast", "both": "dough with yeast"})
    found = _run("multi_query(n=1)", Tasks({"multi_query": "yeast"}), first)
    # The query finds rise and both, the other one yeast and both: both is second twice.
    assert first.search(found, 3) == [("both", 2 / 62), ("yeast", 1 / 61), ("rise", 1 / 61)]


def test_dense_views_are_the_vectors_of_the_queries() -> None:
    table = {QUERY.text: (1, 0), "yeast": (0, 1), "gas": (1, 1)}
    model = Tasks({"subqueries": "yeast\ngas"}, table)
    found = _run("subqueries", model, NoIndex(DENSE))
    assert [view.vector.tolist() for view in found.views if view.vector is not None] == [
        [[1, 0]],
        [[0, 1]],
        [[1, 1]],
    ]


@pytest.mark.parametrize(
    "name", ["multi_query", "subqueries", "mixgr", "clarify", "translate", "translate(beside=true)"]
)
@pytest.mark.parametrize("text", [None, "Sure! Here you go:", "why does dough rise?", LONG])
def test_without_another_query_the_plain_one_serves(name: str, text: str | None) -> None:
    tasks = ("multi_query", "subqueries", "clarified", "translate")
    said = {"clarify": "Bread?"} | (dict.fromkeys(tasks, text) if text else {})
    found = _run(name, Tasks(said))
    assert (found.expanded, found.texts) == (False, ())
    assert [view.texts for view in found.views] == [((QUERY.text, 1.0),)]
    assert found.note
    assert ("too long" in found.note) == (text is LONG)


@pytest.mark.parametrize("name", ["multi_query", "mixgr", "translate"])
def test_without_vectors_nothing_is_found_and_the_note_says_so(name: str) -> None:
    said = dict.fromkeys(("multi_query", "subqueries", "translate"), "yeast")
    found = _run(name, Tasks(said), NoIndex(DENSE))
    assert (found.expanded, found.views) == (False, ())
    assert "could not be embedded" in found.note


MIXED = {"a": (3.0, 0.0), "b": (2.0, 1.0), "c": (0.0, 4.0), "d": (1.0, 1.5), "e": (-1.0, 0.5)}


def test_mixgr_by_hand() -> None:
    table = {QUERY.text: (1, 0), "yeast": (0, 1), "gas": (0, 3)}
    model = Tasks({"subqueries": "yeast\ngas"}, table)
    found = _run("mixgr(depth=2)", model, Toy({}, MIXED, depth=1))
    # The query finds a, b, the mean (0, 2) of the sub-queries c, d. Of the union the first ranks
    # a, b, d, c and the second c, d, b, a; e is in neither.
    assert found.ranking == (
        ("c", 1 / 4 + 1),
        ("a", 1 + 1 / 4),
        ("d", 1 / 3 + 1 / 2),
        ("b", 1 / 2 + 1 / 3),
    )


def test_mixgr_goes_as_deep_as_is_wanted() -> None:
    model = Tasks({"subqueries": "yeast"}, {QUERY.text: (1, 0), "yeast": (0, 1)})
    found = _run("mixgr(depth=1)", model, Toy({}, MIXED, depth=5))
    assert found.ranking is not None
    assert len(found.ranking) == 5


def test_mixgr_of_bm25_takes_the_mean_of_scores() -> None:
    texts = {"rise": "why dough rise", "yeast": "yeast", "gas": "gas", "all": "dough yeast gas"}
    first = lexical(texts, depth=1)
    found = _run("mixgr(depth=1)", Tasks({"subqueries": "yeast\ngas"}), first)
    assert [view.texts for view in found.views] == [
        ((QUERY.text, 1.0),),
        (("yeast", 0.5), ("gas", 0.5)),
    ]
    # The query finds rise, the sub-queries all. Of these rise has no term of the sub-queries.
    assert found.ranking == (("all", 1 + 1 / 2), ("rise", 1))


def test_mixgr_of_both_searches_has_four_views() -> None:
    class Both(Toy):
        def search(self, expansion: Expansion, k: int) -> list[Scored]:
            (view,) = expansion.views
            return (words if view.vector is None else meaning).search(expansion, k)

        def score(self, view: View, ids: Sequence[str]) -> list[float]:
            return (words if view.vector is None else meaning).score(view, ids)

    texts = {"a": "why", "b": "yeast", "c": "sun"}
    words, meaning = Toy(texts), Toy(texts, {"a": (1, 0), "b": (0.5, 0.5), "c": (0, 1)})
    first = Both(texts, depth=1)
    first.kinds = BM25 | DENSE
    model = Tasks({"subqueries": "yeast"}, {QUERY.text: (1, 0), "yeast": (0, 1)})
    found = _run("mixgr(depth=3)", model, first)
    # By words the query ranks a and its part b; by vectors the one a, b, c, the other c, b, a.
    assert found.ranking is not None
    assert dict(found.ranking) == pytest.approx({"a": 2 + 1 / 3, "b": 2, "c": 1 / 3 + 1})
    assert [name for name, _ in found.ranking] == ["a", "b", "c"]


def test_mixgr_searches_no_deeper_than_it_is_told() -> None:
    texts = {"rise": "why dough rise", "yeast": "yeast", "gas": "gas", "all": "dough yeast gas"}
    for first in (Toy(texts, depth=1), Toy(texts, dict.fromkeys(texts, (1.0, 0.0)), depth=1)):
        table = {QUERY.text: (1, 0), "yeast": (0, 1)}
        _run("mixgr(depth=2)", Tasks({"subqueries": "yeast"}, table), first)
        assert first.depths == [2, 2]


def test_mixgr_without_an_index_is_its_views() -> None:
    found = _run("mixgr", Tasks({"subqueries": "yeast"}))
    assert (found.ranking, len(found.views), found.constant) == (None, 2, 0)


def test_mixgr_with_everything_found_is_the_fusion_of_its_views() -> None:
    rng = np.random.default_rng(7)
    rows = {f"d{i}": tuple(rng.normal(size=3)) for i in range(20)}
    table = {text: tuple(rng.normal(size=3)) for text in (QUERY.text, "yeast", "gas")}
    model = Tasks({"subqueries": "yeast\ngas"}, table)
    first = Toy({}, rows, depth=1)
    rankings = [_run(f"mixgr(depth={k})", model, first).ranking for k in (20, 99)]
    assert rankings[0] == rankings[1]
    assert rankings[0] is not None
    whole = dict(rankings[0])
    cut = _run("mixgr(depth=6)", model, first).ranking
    assert cut is not None
    # What is missing in one view is ranked behind the rest of the union, so never worse than there.
    assert all(score >= whole[name] - 1e-12 for name, score in cut)


def test_mixgr_of_propositions_by_hand() -> None:
    texts = {"a": "One. Two!", "b": "Three\nFour?", "c": "Five. Five.", "d": "far"}
    rows = {"a": (3.0, 0.0), "b": (2.0, 1.0), "c": (0.0, 4.0), "d": (-9.0, -9.0)}
    table = {
        QUERY.text: (1, 0),
        "yeast": (0, 1),
        "gas": (1, 1),
        "One.": (1, 0),
        "Two!": (0, 5),
        "Three": (9, 0),
        "Four?": (0, 1),
        "Five.": (2, 2),
    }
    model = Tasks({"subqueries": "yeast\ngas"}, table)
    found = _run("mixgr(depth=3, propositions=true)", model, Toy(texts, rows, depth=1))
    embeds = [item.texts for item in model.asks if isinstance(item, Embed)]
    assert embeds[0] == (QUERY.text, "yeast", "gas")
    assert sorted(embeds[1:]) == [("Five.",), ("One.", "Two!"), ("Three", "Four?")]
    # Query and document: a, b, c. The query's best sentences: b 9, c 2, a 1. The sub-queries' best:
    # a 5 and 5, b 1 and 9, c 2 and 4; of the equal means of a and b the later name comes first.
    assert found.ranking is not None
    assert dict(found.ranking) == pytest.approx(
        {"a": 1 + 1 / 3 + 1 / 2, "b": 1 / 2 + 1 + 1, "c": 1 / 3 + 1 / 2 + 1 / 3}
    )
    assert [name for name, _ in found.ranking] == ["b", "a", "c"]


def test_a_document_without_vectors_of_its_sentences_is_ranked_by_the_others() -> None:
    texts = {"a": "One.", "b": "Two.", "c": " . "}
    rows = {"a": (1.0, 0.0), "b": (2.0, 0.0), "c": (3.0, 0.0)}
    known = Tasks({"subqueries": "yeast"}, {QUERY.text: (1, 0), "yeast": (1, 0), "One.": (1, 0)})

    def model(item: Ask[Any]) -> Answer[Any]:
        if isinstance(item, Embed) and item.texts == ("Two.",):
            return Answer(status=Status.FAILED, problem="too long")
        return known(item)

    found = _run("mixgr(propositions=true)", model, Toy(texts, rows))
    assert found.ranking is not None
    assert dict(found.ranking) == pytest.approx({"c": 1, "b": 1 / 2, "a": 1 / 3 + 1 + 1})


@given(st.lists(st.lists(st.sampled_from("abcde"), min_size=1, max_size=6), min_size=2, max_size=6))
def test_propositions_of_documents_of_one_sentence_are_bm25_of_the_documents(
    rows: list[list[str]],
) -> None:
    """A sentence that is the whole document scores as the index has it, so the ranks agree."""
    first = lexical({f"d{i}": " ".join(["yeast", *row]) for i, row in enumerate(rows)})
    names = sorted((f"d{i}" for i in range(len(rows))), reverse=True)
    texts = ["a b", "yeast c", "d"]
    best, mean = drive(proposition_views(first, names, texts, None), Tasks({}))
    own = [first.score(View(((text, 1.0),)), names) for text in texts]
    assert [score or 0 for score in best] == pytest.approx(own[0], rel=1e-4)
    means = [(yeast + d) / 2 for _, yeast, d in zip(*own, strict=True)]
    assert [score or 0 for score in mean] == pytest.approx(means, rel=1e-4)


def test_propositions_need_documents_and_their_texts() -> None:
    model = Tasks({"subqueries": "yeast"})
    with pytest.raises(SpecError, match="needs documents"):
        _run("mixgr(propositions=true)", model)
    assert model.asks == []
    for name, reads in (
        ("mixgr", False),
        ("mixgr(propositions=true)", True),
        ("gated(mixgr(propositions=true))", True),
        ("gated(mixgr)", False),
        ("gated(mixgr, by=grade)", True),
        ("rerank_feedback", True),
    ):
        assert expand.parse(name).takes_texts is reads


def test_a_clarification_leads_to_the_rewritten_query() -> None:
    said = {
        "clarify": "Question: Bread or pizza?\nAnswer: Bread.",
        "clarified": '"why does bread dough rise"',
    }
    model = Tasks(said)
    found = _run("clarify", model)
    assert model.tasks == ["clarify", "clarified"]
    assert model.asks[1] == Write(
        "clarified", (("query", QUERY.text), ("clarification", "Bread or pizza? Answer: Bread."))
    )
    assert found.texts == ("why does bread dough rise",)
    assert [view.texts[0][0] for view in found.views] == [QUERY.text, *found.texts]
    assert len(found.answers) == 2
    alone = _run("clarify(beside=false)", Tasks(said))
    assert [view.texts[0][0] for view in alone.views] == list(found.texts)


def test_a_long_clarification_is_cut_before_it_is_shown() -> None:
    model = Tasks({"clarify": LONG + LONG})
    _run("clarify", model)
    asked = model.asks[1]
    assert isinstance(asked, Write)
    assert len(str(dict(asked.inputs)["clarification"]).split()) == 2 * WORDS


def test_a_translation_takes_the_place_of_the_query() -> None:
    model = Tasks({"translate": "Translation: « pourquoi la pâte lève »"})
    found = _run("translate(language=French)", model)
    assert model.asks == [Write("translate", (("query", QUERY.text), ("language", "French")))]
    assert [view.texts for view in found.views] == [(("pourquoi la pâte lève", 1.0),)]


def test_a_translation_may_be_searched_beside_the_query() -> None:
    found = _run("translate(beside=true)", Tasks({"translate": "dough"}))
    assert [view.texts[0][0] for view in found.views] == [QUERY.text, "dough"]


@pytest.mark.parametrize(
    ("language", "text", "taken"),
    [
        ("Hindi", "आटा क्यों फूलता है", True),
        ("Hindi", "why bread rises", False),
        ("Chinese (traditional)", "COVID-19 疫苗", True),
        ("Chinese", "vaccine of Covid", False),
        ("Japanese", "パンはなぜ膨らむ", True),
        ("Japanese", "vaccine", False),
        ("Brazilian Portuguese", "por que a massa cresce", True),
        ("English", "почему тесто поднимается", False),
        ("Greek", "ζυμάρι", True),
        ("Russian", "дрожжи", True),
        ("Serbian", "zasto testo raste", True),
        ("Klingon", "why bread rises", True),
        ("Thai", "42", True),
    ],
)
def test_a_translation_must_be_in_the_script_of_the_language(
    language: str, text: str, taken: bool
) -> None:
    found = _run(f"translate(language={language.split()[0]})", Tasks({"translate": text}))
    assert in_script_of(language, text) is taken
    assert found.expanded is taken
    assert found.texts == ((text,) if taken else ())
    assert ("not written as" in found.note) is not taken
    assert len(found.answers) == 1


@pytest.mark.parametrize(
    "text",
    [
        "multi_query(n=0)",
        "multi_query(constant=-1)",
        "subqueries(constant=inf)",
        "subqueries(constant=nan)",
        "mixgr(n=0)",
        "mixgr(depth=0)",
        "translate(language= )",
    ],
)
def test_wrong_parameters(text: str) -> None:
    with pytest.raises(SpecError):
        expand.parse(text)


def test_a_query_of_its_own_words_alone_is_not_another_one() -> None:
    plan = expand.parse("translate").plan(Query("q", "Taxi"), NoIndex(BM25))
    assert not drive(plan, Tasks({"translate": "taxi."})).expanded
