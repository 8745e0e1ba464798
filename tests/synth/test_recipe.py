from __future__ import annotations

import pytest

from llmrank import prompts, rerank
from llmrank.errors import SpecError
from llmrank.plan import Embed, Grade, Write
from llmrank.synth import STEPS, parse
from llmrank.synth.base import DocumentFilter, Stage, Writer
from llmrank.synth.documents import Choice

WHOLE = (
    "clusters(k=3)@50 >> distinct(least=0.7) >> worthwhile >> write(kinds=question+claim, n=2) >> "
    "across >> length(least=2) >> copied >> language >> round_trip(yesno@10 >> likelihood@5, k=1) "
    ">> unique(by=vectors) >> guard >> self_contained >> judge(grade(labels=4), least=2) >> split"
)


def test_a_recipe_is_read_back_from_its_text() -> None:
    recipe = parse(WHOLE, rerank.parse)
    assert parse(str(recipe), rerank.parse) == recipe
    assert [step.name for step in recipe.steps][:3] == ["clusters", "distinct", "worthwhile"]
    assert str(recipe).startswith("clusters(k=3, temperature=1.0,")
    assert "seed=0)@50 >> distinct(least=0.7)" in str(recipe)


def test_a_recipe_says_what_it_asks_and_searches() -> None:
    recipe = parse(WHOLE, rerank.parse)
    assert recipe.searches == {"bm25", "dense"}
    asked = {(need.ask, need.task) for need in recipe.needs}
    assert {
        (Write, "query_question"),
        (Write, "query_multihop"),
        (Grade, "worthwhile"),
        (Grade, "self_contained"),
        (Grade, ""),
        (Embed, ""),
    } <= asked
    for need in recipe.needs:
        if need.task:
            assert prompts.load(need.task).name == need.task
    assert parse("all >> write", rerank.parse).searches == frozenset()


def test_every_step_is_of_one_kind_and_has_a_text_of_its_own() -> None:
    for name, step in STEPS.items():
        assert step.name == name
        assert sum(issubclass(step, k) for k in (Choice, DocumentFilter, Writer, Stage)) == 1
        assert step.__doc__


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("write", "begins with a choice"),
        ("random@5", "writes something"),
        ("random@5 >> length", "writes something"),
        ("random@5 >> write >> distinct", "stands too late"),
        ("random@5 >> write >> length >> write", "stands too late"),
        ("random@5 >> write >> poetry", "no step 'poetry'"),
        ("random@0 >> write", "at least 1"),
        ("random(count=5) >> write", "behind @"),
        ("random@5 >> write@3", "no number behind @"),
        ("random@5 >> write(yesno)", "takes no reranking method"),
        ("random@5 >> write >> judge", "needs a reranking method"),
        ("random@5 >> write >> judge(poetry)", "poetry"),
        ("random@5 >> write(colour=red)", "colour"),
        ("random@5 >> write >> split(dev=1)", "dev and test"),
        ("random@5 >> write >> mine >> split >> length >> mine", "before split"),
    ],
)
def test_mistakes_are_told(text: str, told: str) -> None:
    with pytest.raises(SpecError, match=told):
        parse(text, rerank.parse)
