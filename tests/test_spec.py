from __future__ import annotations

import keyword
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrank import expand, rerank, spec
from llmrank.errors import SpecError

NAMES = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True).filter(
    lambda name: not keyword.iskeyword(name)
)
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="(),="), max_size=9).map(str.strip)
VALUES = st.one_of(
    st.booleans(), st.integers(), st.floats(allow_nan=False), TEXTS.filter(lambda text: text != "")
)


def taking(defaults: dict[str, object]) -> Callable[..., Any]:
    """A function with these keyword-only parameters."""
    scope: dict[str, Any] = {"given": defaults}
    inside = ", ".join(f"{name}=given[{name!r}]" for name in defaults)
    exec(f"def made({'*, ' + inside if inside else ''}): ...", scope)
    made: Callable[..., Any] = scope["made"]
    return made


@given(NAMES, st.dictionaries(NAMES, VALUES, max_size=4), st.none() | st.integers(0, 10**9 - 1))
def test_what_is_written_is_read_back(
    name: str, parameters: dict[str, object], depth: int | None
) -> None:
    text = spec.written(name, parameters) + ("" if depth is None else f"@{depth}")
    read = spec.split(text)
    assert (read.name, read.depth) == (name, depth)
    bound = spec.bind(name, taking(parameters), read.parameters)
    assert bound == parameters
    assert [type(value) for value in bound.values()] == [type(v) for v in parameters.values()]
    assert spec.written(name, bound) == spec.written(name, parameters)


@given(st.text(max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    for read in (spec.split, rerank.parse, expand.parse):
        try:
            read(text)
        except SpecError as error:
            assert str(error)


@settings(deadline=None)
@given(
    st.integers(2, 99).flatmap(lambda w: st.tuples(st.just(w), st.integers(1, w))),
    st.integers(1, 999),
)
def test_methods_and_expansions_are_their_names(sizes: tuple[int, int], depth: int) -> None:
    window, stride = sizes
    method = rerank.Method("sliding", {"window": window, "stride": stride}, depth)
    assert rerank.parse(str(method)) == method
    expander = expand.Expander("query2doc", {"n": window, "repeat": stride})
    assert expand.parse(str(expander)) == expander


def test_space_and_empty_brackets_do_not_matter() -> None:
    spaced = spec.split("  sliding ( window = 4 , stride=2 ) @ 7 ")
    assert spaced == ("sliding", {"window": "4", "stride": "2"}, 7, "")
    assert spec.split("yesno()") == spec.split("yesno") == ("yesno", {}, None, "")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "@3",
        "a(",
        "a)b",
        "a(b=1, c)",
        "a(3)",
        "a(b(c=1)",
        "a(b=1, b=2)",
        "a(=1)",
        "a b",
        "a@",
        "a@-1",
        "a@1.5",
        "a(b=(1))",
        "a(,)",
        "a( , )",
        "a(b=1,)",
        "a(,b=1)",
        "a(b=1,,c=2)",
        "a(b(c=1),)",
        "a@١٠",
    ],
)
def test_what_cannot_be_read(text: str) -> None:
    with pytest.raises(SpecError):
        spec.split(text)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("sliding(windows=4)", "window, stride"),
        ("yesno(window=4)", "none"),
        ("sliding(window=4.5)", "must be int"),
        ("sliding(window=)", "must be int"),
        ("likelihood(mean=1)", "true or false"),
        ("likelihood(prior=much)", "must be float"),
        ("likelihood(prior=nan)", "finite"),
        ("sliding(window=3, stride=4)", "stride <= window"),
        ("sliding(window=٢٠)", "must be int"),
        ("likelihood(prior=١)", "must be float"),
        ("sliding(,)", "comma"),
        ("sliding(window=20,)", "comma"),
        ("psc(sliding@100)", "behind its closing bracket"),
        ("psc(sliding(window=20)@100, samples=3)", "behind its closing bracket"),
        ("psc(sliding@20)", "behind its closing bracket"),
        ("psc(yesno >> sliding)", "methods in a row"),
        ("yesno >> psc(yesno@20 >> sliding@10, samples=3)@5", "methods in a row"),
        ("yesno >>", "cannot read ''"),
        (">> yesno", "cannot read ''"),
    ],
)
def test_what_does_not_fit_is_named(text: str, told: str) -> None:
    with pytest.raises(SpecError, match=told):
        rerank.parse(text)


class TestValuesFromPython:
    def test_a_whole_number_serves_as_a_float(self) -> None:
        method = rerank.Method("likelihood", {"prior": 1})
        assert str(method) == str(rerank.parse("likelihood(prior=1)"))

    @pytest.mark.parametrize(
        ("name", "parameters"),
        [
            ("sliding", {"window": 4.5}),
            ("sliding", {"window": None}),
            ("sliding", {"window": True}),
            ("likelihood", {"mean": 0}),
            ("likelihood", {"prior": [1]}),
        ],
    )
    def test_another_type_is_refused(self, name: str, parameters: dict[str, object]) -> None:
        with pytest.raises(SpecError, match="must be"):
            rerank.Method(name, parameters)

    def test_a_parameter_without_a_default_value_is_text(self) -> None:
        assert spec.bind("x", taking({"key": None}), {"key": "abc"}) == {"key": "abc"}

    def test_infinity_and_small_numbers(self) -> None:
        for value in (math.inf, 1e-300, -0.0):
            read = spec.split(spec.written("x", {"p": value}))
            assert spec.bind("x", taking({"p": 0.0}), read.parameters) == {"p": value}

    def test_an_expansion_checks_its_values_before_it_is_run(self) -> None:
        assert expand.Expander("query2doc", {"n": "2"}) == expand.parse("query2doc(n=2)")
        assert expand.Expander("hyde") == expand.parse("hyde(n=4)")
        for wrong in ("query2doc(n=0)", "query2doc(repeat=0)", "hyde(n=-1)", "hyde@3", "nosuch"):
            with pytest.raises(SpecError):
                expand.parse(wrong)


def test_a_spec_may_stand_inside_another_one() -> None:
    found = spec.split("psc(sliding(window=4, stride=2), samples=3)@20")
    assert found == ("psc", {"samples": "3"}, 20, "sliding(window=4, stride=2)")
    assert spec.split("psc(yesno)").inner == spec.split("psc( yesno )").inner == "yesno"
    assert spec.split(spec.written("a", {"b": 1}, "c(d=2)")) == ("a", {"b": "1"}, None, "c(d=2)")
