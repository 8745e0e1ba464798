from __future__ import annotations

import pytest

from llmrank import expand
from llmrank.errors import SpecError
from llmrank.expand import Expander
from llmrank.prompts import load


def _inner(name: str) -> Expander | None:
    return Expander("query2doc") if expand.METHODS[name].inner else None


@pytest.mark.parametrize("name", expand.METHODS)
def test_names_are_read_back(name: str) -> None:
    expander = Expander(name, inner=_inner(name))
    assert expand.parse(str(expander)) == expander


def test_a_name_says_its_parameters() -> None:
    assert str(expand.parse("query2doc(n=3)")) == "query2doc(n=3, repeat=5)"


@pytest.mark.parametrize("name", expand.METHODS)
def test_what_it_has_written_has_a_prompt(name: str) -> None:
    for need in Expander(name, inner=_inner(name)).needs(frozenset()):
        if need.task:
            assert load(need.task).ask == "write"


@pytest.mark.parametrize(
    "text", ["nosuch", "query2doc(m=1)", "query2doc(n=x)", "hyde@5", "", "hyde(n=1", "hyde(n=0)"]
)
def test_what_cannot_be_read(text: str) -> None:
    with pytest.raises(SpecError):
        expand.parse(text)
