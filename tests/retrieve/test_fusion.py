from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrank.errors import InputError
from llmrank.retrieve import Fusion, hybrid, minmax, product, reciprocal_rank, zscore

Scored = tuple[str, float]

NAMES = st.sampled_from("abcdefgh")
RANKINGS = st.lists(st.lists(NAMES, unique=True), max_size=4)
LISTS = st.lists(
    st.dictionaries(NAMES, st.floats(-1e6, 1e6), max_size=6).map(lambda d: list(d.items())),
    max_size=4,
)
BY_SCORE = [minmax, zscore]


def test_reciprocal_rank_of_a_worked_example() -> None:
    fused = reciprocal_rank([["a", "b"], ["b", "c"]])
    assert fused == [("b", 1 / 62 + 1 / 61), ("a", 1 / 61), ("c", 1 / 62)]
    assert reciprocal_rank([["a"], ["b"]], k=0, weights=[1, 3]) == [("b", 3), ("a", 1)]


def test_minmax_of_a_worked_example() -> None:
    fused = minmax([[("a", 4), ("b", 3), ("c", 2)], [("b", 20), ("d", 10)]], weights=[1, 2])
    assert fused == [("b", 2.5), ("a", 1), ("d", 0), ("c", 0)]


def test_zscore_of_a_worked_example() -> None:
    fused = dict(zscore([[("a", 3), ("b", 1)], [("c", 9)]], weights=[2, 5]))
    assert fused == pytest.approx({"a": 2, "b": -2, "c": -2})


def test_a_constant_list_gives_one_by_minmax_and_nothing_by_zscore() -> None:
    lists = [[("a", 7.0), ("b", 7.0)], [("c", 1.0)]]
    assert minmax(lists) == [("c", 1), ("b", 1), ("a", 1)]
    assert zscore(lists) == [("c", 0), ("b", 0), ("a", 0)]


def test_product_of_a_worked_example() -> None:
    lexical = [("a", 4.0), ("b", 3.0), ("c", 2.0)]
    dense = [("b", 0.5), ("d", 0.9), ("c", -0.5)]
    assert product(lexical, dense) == [("b", 1.5), ("d", 0), ("c", 0), ("a", 0)]


def test_product_without_a_lexical_match_is_the_dense_order() -> None:
    dense = [("a", 0.5), ("b", -0.25)]
    assert product([], dense) == dense
    assert product([("c", 0.0)], dense) == [("a", 0.5), ("c", 0), ("b", -0.25)]


@given(LISTS)
def test_product_returns_every_document_in_order(lists: list[list[Scored]]) -> None:
    lexical, dense = [*lists, [], []][:2]
    fused = product(lexical, dense)
    assert {name for name, _ in fused} == {name for found in (lexical, dense) for name, _ in found}
    assert fused == sorted(fused, key=lambda hit: (hit[1], hit[0]), reverse=True)


class TestHybrid:
    lexical: tuple[Scored, ...] = (("a", 3.0), ("b", 1.0))
    dense: tuple[Scored, ...] = (("b", 0.9), ("c", 0.1))

    def test_one_half_each_is_the_default(self) -> None:
        lists = [self.lexical, self.dense]
        ranks = [[name for name, _ in found] for found in lists]
        assert hybrid("rrf", *lists) == reciprocal_rank(ranks)
        assert hybrid("minmax", *lists) == minmax(lists, weights=[0.5, 0.5])
        assert hybrid("zscore", *lists) == zscore(lists, weights=[0.5, 0.5])
        assert hybrid("product", *lists) == product(*lists)

    @pytest.mark.parametrize("fusion", ["rrf", "minmax", "zscore"])
    def test_the_ends_of_the_weight_are_the_parts(self, fusion: Fusion) -> None:
        lexical = hybrid(fusion, self.lexical, self.dense, dense_weight=0)
        dense = hybrid(fusion, self.lexical, self.dense, dense_weight=1)
        assert (lexical[0][0], dense[0][0]) == ("a", "b")
        assert hybrid(fusion, self.lexical, self.dense, dense_weight=0.3)[0][0] == (
            "b" if fusion == "rrf" else "a"
        )

    @pytest.mark.parametrize(
        ("fusion", "weight", "told"),
        [("product", 0.5, "no weight"), ("minmax", 1.5, "1.5"), ("sum", None, "rrf, minmax")],
    )
    def test_bad_input_is_named(self, fusion: Fusion, weight: float | None, told: str) -> None:
        with pytest.raises(InputError, match=told):
            hybrid(fusion, self.lexical, self.dense, dense_weight=weight)


def test_nothing_fuses_to_nothing() -> None:
    assert reciprocal_rank([]) == reciprocal_rank([[], []]) == []
    assert minmax([[]]) == zscore([]) == product([], []) == []


@given(RANKINGS)
def test_reciprocal_rank_ignores_the_order_of_the_rankings(rankings: list[list[str]]) -> None:
    fused = reciprocal_rank(rankings)
    assert fused == reciprocal_rank(rankings[::-1])
    assert {name for name, _ in fused} == {name for ranking in rankings for name in ranking}
    assert fused == sorted(fused, key=lambda hit: (hit[1], hit[0]), reverse=True)


@given(st.lists(NAMES, unique=True), st.integers(1, 4))
def test_rankings_that_agree_are_kept(ranking: list[str], copies: int) -> None:
    assert [name for name, _ in reciprocal_rank([ranking] * copies)] == ranking


@pytest.mark.parametrize("fuse", BY_SCORE)
@given(LISTS)
def test_score_fusion_returns_every_document_in_order(
    fuse: Callable[..., list[Scored]], lists: list[list[Scored]]
) -> None:
    fused = fuse(lists)
    assert {name for name, _ in fused} == {name for scored in lists for name, _ in scored}
    assert fused == sorted(fused, key=lambda hit: (hit[1], hit[0]), reverse=True)
    assert fused == fuse(lists[::-1])


@pytest.mark.parametrize("fuse", BY_SCORE)
@given(LISTS, st.integers(-3, 3), st.integers(-5, 5))
def test_scale_and_shift_of_a_list_do_not_matter(
    fuse: Callable[..., list[Scored]], lists: list[list[Scored]], scale: int, shift: int
) -> None:
    whole = [[(name, float(round(score))) for name, score in scored] for scored in lists]
    moved = [[(name, score * 2.0**scale + shift) for name, score in scored] for scored in whole]
    assert dict(fuse(moved)) == pytest.approx(dict(fuse(whole)), abs=1e-6)


@given(
    st.dictionaries(NAMES, st.floats(allow_nan=False, allow_infinity=False, width=32), min_size=2)
)
def test_one_list_keeps_its_order_and_its_normal_form(scores: dict[str, float]) -> None:
    scored = list(scores.items())
    unit, z = dict(minmax([scored])), dict(zscore([scored]))
    assert all(0 <= value <= 1 for value in unit.values())
    assert all(math.isfinite(value) for value in z.values())
    if len(set(scores.values())) > 1:
        assert (min(unit.values()), max(unit.values())) == (0, 1)
        assert math.fsum(z.values()) == pytest.approx(0, abs=1e-9)
        assert math.fsum(v * v for v in z.values()) / len(z) == pytest.approx(1)
    for name, score in scored:
        for other, lower in scored:
            assert score < lower or (unit[name] >= unit[other] and z[name] >= z[other])


@given(LISTS)
def test_a_weight_of_zero_silences_a_list(lists: list[list[Scored]]) -> None:
    extra = [("a", 1.0), ("z", 5.0)]
    fused = dict(minmax([*lists, extra], weights=[1.0] * len(lists) + [0.0]))
    assert all(fused[name] == score for name, score in minmax(lists))


def test_bad_input_is_named() -> None:
    with pytest.raises(InputError, match="'a' occurs twice"):
        reciprocal_rank([["a", "b", "a"]])
    with pytest.raises(InputError, match="'a' occurs twice"):
        minmax([[("a", 1), ("a", 2)]])
    with pytest.raises(InputError, match="1 weights were given for 2 lists"):
        zscore([[], []], weights=[1])
    with pytest.raises(InputError, match="0 or more"):
        reciprocal_rank([["a"]], weights=[-1])
    with pytest.raises(InputError, match="k is -1"):
        reciprocal_rank([["a"]], k=-1)


@pytest.mark.parametrize("score", [math.nan, math.inf, 1.7e308])
def test_scores_that_cannot_be_compared_are_named(score: float) -> None:
    with pytest.raises(InputError, match="finite"):
        minmax([[("a", score), ("b", -1.7e308)]])
    if not math.isfinite(score):
        with pytest.raises(InputError, match="finite"):
            product([("a", 1.0)], [("a", score)])
