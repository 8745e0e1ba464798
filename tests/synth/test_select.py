from __future__ import annotations

import tracemalloc
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from llmrank.errors import SpecError
from llmrank.synth.select import Clustering, clusters, draw, kmeans, quotas, sampled

Floats = NDArray[np.float32]

sizes_of = st.lists(st.integers(0, 30), max_size=12)


def random_vectors(n: int, dimensions: int = 8, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal((n, dimensions)).astype(np.float32)


def topics(counts: list[int], noise: float = 0.05) -> tuple[Floats, list[int]]:
    """Vectors close around one axis for each topic, and the topic of each, mixed."""
    rng = np.random.default_rng(1)
    truth = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    axes = np.eye(16, dtype=np.float32)[truth]
    near = axes + noise * random_vectors(len(truth), 16)
    return near.astype(np.float32), truth.tolist()


@given(st.lists(st.integers(), max_size=60), st.integers(1, 80), st.integers())
def test_a_draw_has_the_size_and_the_order_asked_for(items: list[int], n: int, seed: int) -> None:
    numbered = list(enumerate(items))
    found = draw(iter(numbered), n, seed)
    assert len(found) == min(n, len(items))
    assert found == sorted(set(found))
    assert set(found) <= set(numbered)
    assert found == draw(iter(numbered), n, seed)


def test_every_pair_is_drawn_equally_often() -> None:
    found = Counter(tuple(draw(range(5), 2, seed)) for seed in range(4000))
    assert set(found) == set(combinations(range(5), 2))
    assert all(320 < count < 480 for count in found.values())  # 400 expected, 4 deviations


def test_nothing_cannot_be_drawn() -> None:
    with pytest.raises(SpecError, match="n must be at least 1"):
        draw([1], 0)


@given(sizes_of, st.integers(0, 400))
def test_quotas_sum_to_n_and_stay_within_the_clusters(sizes: list[int], n: int) -> None:
    found = quotas(sizes, n)
    assert len(found) == len(sizes)
    assert sum(found) == min(n, sum(sizes))
    assert all(0 <= quota <= size for quota, size in zip(found, sizes, strict=True))


@given(sizes_of, st.integers(0, 400))
def test_quotas_give_each_cluster_one_and_its_share_of_the_rest(sizes: list[int], n: int) -> None:
    found = quotas(sizes, n)
    filled = [(size, quota) for size, quota in zip(sizes, found, strict=True) if size]
    if n < len(filled):
        assert max(found, default=0) <= 1
        passed_over = [size for size, quota in filled if not quota]
        taken = [size for size, quota in filled if quota]
        assert min(taken, default=99) >= max(passed_over, default=0)
        return
    left = sum(sizes) - len(filled)
    rest = min(n, sum(sizes)) - len(filled)
    for size, quota in filled:
        share = 1 + (rest * (size - 1) / left if left else 0)
        assert quota >= 1
        assert abs(quota - share) < 1 - 1e-9 or quota == share
    for (size, quota), (other, less) in combinations(filled, 2):
        assert (size - other) * (quota - less) >= 0  # the larger never gives less


@given(sizes_of, st.integers(0, 400))
def test_the_place_of_a_cluster_matters_only_among_equals(sizes: list[int], n: int) -> None:
    turned = quotas(sizes[::-1], n)[::-1]
    assert sorted(zip(sizes, turned, strict=True)) == sorted(
        zip(sizes, quotas(sizes, n), strict=True)
    )


@pytest.mark.parametrize(
    ("sizes", "n", "expected"),
    [
        ([10, 10, 10], 3, [1, 1, 1]),  # n equal to the clusters: no remainder to slice
        ([1] * 10 + [10], 15, [1] * 10 + [5]),
        ([60, 30, 10], 10, [5, 3, 2]),
        ([5, 0, 5], 4, [2, 0, 2]),
        ([5, 5], 3, [2, 1]),
        ([3, 9, 5], 2, [0, 1, 1]),
        ([], 4, []),
    ],
)
def test_quotas_by_hand(sizes: list[int], n: int, expected: list[int]) -> None:
    assert quotas(sizes, n) == expected


@pytest.mark.parametrize(("sizes", "n"), [([1, -1], 1), ([1], -1)])
def test_quotas_refuse_what_is_negative(sizes: list[int], n: int) -> None:
    with pytest.raises(SpecError):
        quotas(sizes, n)


def test_kmeans_finds_topics_that_are_apart() -> None:
    vectors, truth = topics([40, 5, 100, 20])
    found = kmeans(vectors * np.float32(3.7), 4)  # lengths do not matter
    assert len(set(zip(found.labels.tolist(), truth, strict=True))) == 4
    assert sorted(found.sizes) == [5, 20, 40, 100]
    assert found.cosines.min() > 0.8


@given(st.integers(0, 40), st.integers(1, 50), st.integers(-5, 5))
@settings(max_examples=60, deadline=None)
def test_a_clustering_is_whole_and_repeatable(n: int, k: int, seed: int) -> None:
    vectors = random_vectors(n)
    found = kmeans(vectors, k, seed=seed)
    assert found.sizes == np.bincount(found.labels, minlength=min(n, k)).tolist()
    assert len(found.sizes) == min(n, k)
    assert all(found.sizes)  # all vectors differ, so no cluster may be empty
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(np.linalg.norm(found.centroids, axis=1), 1, atol=1e-5)
    cosines = np.einsum("ij,ij->i", unit, found.centroids[found.labels])
    np.testing.assert_allclose(found.cosines, cosines, atol=1e-5)
    again = kmeans(vectors, k, seed=seed)
    assert np.array_equal(found.labels, again.labels)


def test_once_settled_every_vector_is_with_its_nearest_centroid() -> None:
    vectors = random_vectors(500)
    found = kmeans(vectors, 12, iterations=200)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(found.cosines, (unit @ found.centroids.T).max(axis=1), atol=1e-5)


def test_more_iterations_do_not_lose_closeness() -> None:
    vectors = random_vectors(800)
    close = [float(kmeans(vectors, 10, iterations=i).cosines.mean()) for i in (1, 2, 5, 20)]
    assert close == sorted(close)
    assert close[-1] > close[0] + 0.005


def test_fewer_different_vectors_than_clusters_leave_clusters_empty() -> None:
    vectors = np.repeat(random_vectors(3), 7, axis=0)
    found = kmeans(vectors, 5)
    assert sorted(found.sizes) == [0, 0, 7, 7, 7]
    assert len(clusters(vectors, 6, k=5)) == 6


def test_vectors_of_zeros_and_opposites_are_clustered_too() -> None:
    vectors = np.array([[0, 0], [1, 0], [-1, 0], [0, 0]], np.float32)
    found = kmeans(vectors, 1)
    assert np.isfinite(found.centroids).all()
    assert np.isfinite(found.cosines).all()
    assert found.sizes == [4]


def test_clustering_holds_blocks_alone_in_memory() -> None:
    vectors = random_vectors(60_000, 64)
    tracemalloc.start()
    kmeans(vectors, 600, iterations=1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 80 << 20  # the cosines of all at once are 137 MiB


@given(
    st.integers(1, 60),
    st.integers(1, 70),
    st.integers(1, 12),
    st.sampled_from([0.01, 1.0]),
    st.sampled_from([0.0, 0.5, 1.0]),
)
@settings(max_examples=80, deadline=None)
def test_chosen_documents_fill_the_quota_of_every_cluster(
    count: int, n: int, k: int, temperature: float, diversity: float
) -> None:
    vectors = random_vectors(count)
    found = kmeans(vectors, k, seed=3)
    chosen = clusters(vectors, n, k=k, temperature=temperature, diversity=diversity, seed=3)
    assert chosen == sorted(set(chosen))
    assert len(chosen) == min(n, count)
    got = np.bincount(found.labels[chosen], minlength=len(found.sizes)).tolist()
    assert got == quotas(found.sizes, n)
    again = clusters(vectors, n, k=k, temperature=temperature, diversity=diversity, seed=3)
    assert chosen == again


def test_a_rare_topic_is_chosen_where_chance_would_miss_it() -> None:
    vectors, truth = topics([500, 500, 3], noise=0.01)
    chosen = clusters(vectors, 20, k=8)
    assert {truth[i] for i in chosen} == {0, 1, 2}


def one_cluster(cosines: list[float]) -> tuple[Floats, Clustering]:
    near = np.array(cosines, np.float32)
    vectors = np.stack([near, np.sqrt(1 - near**2)], axis=1)
    centroid = np.array([[1, 0]], np.float32)
    return vectors, Clustering(np.zeros(len(near), np.int64), near, centroid)


def test_documents_are_drawn_with_the_softmax_of_their_cosines() -> None:
    vectors, found = one_cluster([0.9, 0.5, 0.1])
    drawn = Counter(
        sampled(vectors, found, 1, temperature=0.5, seed=seed)[0] for seed in range(6000)
    )
    weights = np.exp(np.array([0.9, 0.5, 0.1]) / 0.5)
    for place, share in enumerate(weights / weights.sum()):
        assert abs(drawn[place] / 6000 - share) < 0.025


def test_a_low_temperature_takes_the_nearest_to_the_centroid() -> None:
    vectors, found = one_cluster([0.1, 0.9, 0.5, 0.8])
    assert sampled(vectors, found, 2, temperature=1e-4) == [1, 3]


def test_diversity_passes_over_a_copy_of_what_was_chosen() -> None:
    vectors, found = one_cluster([0.9, 0.9, 0.6, 0.59])
    assert sampled(vectors, found, 2, temperature=1e-4, diversity=0.01) == [0, 1]
    chosen = sampled(vectors, found, 2, temperature=1e-4, diversity=0.9)
    assert len({0, 1} & set(chosen)) == 1


def test_diversity_lowers_the_likeness_of_the_chosen() -> None:
    vectors = random_vectors(400)
    found = kmeans(vectors, 5)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def likeness(diversity: float) -> float:
        chosen = unit[sampled(vectors, found, 40, diversity=diversity)]
        np.fill_diagonal(cosines := chosen @ chosen.T, -1)
        return float(cosines.max(axis=1).mean())

    assert likeness(0.9) < likeness(0.0) - 0.05


@pytest.mark.parametrize(
    "given", [{"k": 0}, {"n": 0}, {"temperature": 0.0}, {"diversity": 1.5}, {"diversity": -0.1}]
)
def test_parameters_out_of_range_are_refused(given: dict[str, float]) -> None:
    parameters = {"n": 2, "k": 2, "temperature": 1.0, "diversity": 0.0} | given
    with pytest.raises(SpecError):
        clusters(random_vectors(9), **parameters)  # type: ignore[arg-type]


def test_no_vectors_make_no_choice() -> None:
    assert clusters(np.zeros((0, 4), np.float32), 3, k=2) == []
    assert kmeans(np.zeros((0, 4), np.float32), 3).sizes == []
