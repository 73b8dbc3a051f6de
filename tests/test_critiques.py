"""Critiques: clusters and representatives, against hand-made geometry and scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import silhouette_samples

from raters.critiques import Clusters, cluster, representatives
from raters.embedders import open_embedder
from raters.records import ConfigError, DataError

# --- clusters ------------------------------------------------------------------------------------------------


def around(*angles: float, spread: float = 0.01, count: int = 5) -> NDArray[np.float64]:
    """Return unit vectors in the plane, `count` near each angle, in a row."""
    turned = np.concatenate([angle + spread * np.arange(count) for angle in angles])
    return np.column_stack([np.cos(turned), np.sin(turned)])


@pytest.mark.parametrize("groups", [2, 3, 5, 7])
def test_as_many_clusters_as_there_are_groups(groups: int) -> None:
    angles = [2 * math.pi * group / groups for group in range(groups)]
    found = cluster(around(*angles))
    assert len(found.centroids) == groups
    for group in range(groups):
        assert len(set(found.assignment[5 * group : 5 * group + 5].tolist())) == 1
    assert found.silhouette > 0.9


def test_the_bounds_hold() -> None:
    vectors = around(*(2 * math.pi * group / 6 for group in range(6)))
    assert len(cluster(vectors, most=4).centroids) in (2, 3, 4)
    assert len(cluster(around(0.0, 2.0), fewest=3, most=3).centroids) == 3


def test_silhouette_and_centroids_by_definition() -> None:
    """The silhouette is scikit-learn's mean over points, a centroid the mean of its members."""
    random_state = np.random.default_rng(1)
    vectors = random_state.normal(size=(40, 4)) + np.repeat(np.eye(4) * 4, 10, axis=0)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    found = cluster(vectors)
    assert found.silhouette == pytest.approx(silhouette_samples(vectors, found.assignment).mean())
    for code, centroid in enumerate(found.centroids):
        np.testing.assert_allclose(centroid, vectors[found.assignment == code].mean(axis=0))


def test_the_largest_cluster_is_first() -> None:
    vectors = np.concatenate([around(0.0, count=3), around(2.0, count=8), around(4.0, count=5)])
    found = cluster(vectors)
    assert np.bincount(found.assignment).tolist() == [8, 5, 3]
    assert found.assignment.tolist() == [2] * 3 + [0] * 8 + [1] * 5


def test_the_same_seed_finds_the_same() -> None:
    vectors = np.random.default_rng(0).normal(size=(60, 5))
    first, second = cluster(vectors, seed=3), cluster(vectors, seed=3)
    np.testing.assert_array_equal(first.assignment, second.assignment)
    assert first.silhouette == second.silhouette


def test_duplicates_are_one_vector() -> None:
    vectors = around(0.0, 2.0)
    repeated = np.concatenate([vectors, np.repeat(vectors[:1], 30, axis=0)])
    found, alone = cluster(repeated), cluster(vectors)
    np.testing.assert_array_equal(found.assignment[:10], alone.assignment)
    assert set(found.assignment[10:].tolist()) == {found.assignment[0]}
    assert found.silhouette == pytest.approx(alone.silhouette)
    np.testing.assert_allclose(found.centroids, alone.centroids)


@pytest.mark.parametrize(
    "vectors",
    [
        np.eye(6),  # all as far from each other
        np.ones((5, 3)) / math.sqrt(3),  # all the same
        np.eye(2),
        np.eye(3)[:1],
        np.zeros((4, 3)),
        np.zeros((4, 0)),
        np.array([[0.0, 1.0], [-0.0, 1.0], [0.0, 1.0]]),
    ],
)
def test_one_cluster_when_nothing_separates(vectors: NDArray[np.float64]) -> None:
    found = cluster(vectors)
    assert found.assignment.tolist() == [0] * len(vectors)
    assert found.centroids.shape == (1, vectors.shape[1])
    assert found.silhouette == 0


def test_no_texts_have_no_clusters() -> None:
    found = cluster(np.empty((0, 3)))
    assert (found.assignment.shape, found.centroids.shape) == ((0,), (0, 3))
    assert representatives([], np.empty((0, 3)), found) == []


def test_fewer_vectors_than_clusters() -> None:
    vectors = np.concatenate([around(0.0, count=2), around(3.0, count=1)])
    assert cluster(vectors, fewest=2, most=8).assignment.tolist() == [0, 0, 1]
    assert len(cluster(vectors, fewest=5, most=8).centroids) == 1


def test_zero_vectors_join_a_cluster_and_change_none() -> None:
    vectors = around(0.0, 2.0)
    found = cluster(np.concatenate([vectors, np.zeros((3, 2))]))
    np.testing.assert_allclose(np.sort(found.centroids, axis=0), np.sort(cluster(vectors).centroids, axis=0))
    assert len(set(found.assignment[10:].tolist())) == 1


def test_a_sample_of_many_vectors_is_enough() -> None:
    turned = np.concatenate([np.linspace(0, 0.3, 3000), np.linspace(2, 2.3, 3000)])
    found = cluster(np.column_stack([np.cos(turned), np.sin(turned)]), most=3)
    assert np.bincount(found.assignment).tolist() == [3000, 3000]


@pytest.mark.parametrize(("fewest", "most"), [(1, 8), (0, 8), (5, 4)])
def test_bounds_that_are_none_are_refused(fewest: int, most: int) -> None:
    with pytest.raises(ConfigError, match=f"clusters from {fewest} to {most}"):
        cluster(np.eye(3), fewest=fewest, most=most)


def test_numbers_that_are_none_are_refused() -> None:
    with pytest.raises(DataError, match="not finite"):
        cluster(np.array([[1.0, np.nan]]))


# --- representatives -----------------------------------------------------------------------------------------

LINE = np.array([[0.0, 1.0], [0.2, 1.0], [0.5, 1.0], [5.0, 1.0], [5.2, 1.0], [6.0, 1.0], [5.1, 1.0]])
HALVES = Clusters(np.array([1, 1, 1, 0, 0, 0, 0]), np.array([[5.3, 1.0], [0.22, 1.0]]), 0.9)


def test_representatives_are_the_nearest_in_order() -> None:
    """Distances from 5.3: .3, .1, .7, .2; from .22: .22, .02, .28."""
    texts = list("abcdefg")
    assert representatives(texts, LINE, HALVES) == [[4], [1]]
    assert representatives(texts, LINE, HALVES, per_cluster=3) == [[4, 6, 3], [1, 0, 2]]
    assert representatives(texts, LINE, HALVES, per_cluster=9) == [[4, 6, 3, 5], [1, 0, 2]]


def test_a_text_stands_once() -> None:
    texts = ["No date.", "Too long", "x", "no  DATE.", "no date.", "y", "Too  long"]
    assert representatives(texts, LINE, HALVES, per_cluster=2) == [[4, 6], [2]]


def test_blank_texts_and_zero_vectors_stand_for_nothing() -> None:
    vectors = np.array([[0.0, 0.0], [0.1, 0.0], [1.0, 0.0], [0.0, 0.0]])
    one = Clusters(np.zeros(4, np.int64), np.array([[0.1, 0.0]]), 0.0)
    assert representatives(["?", "  ", "a", "!"], vectors, one, per_cluster=4) == [[2]]


def test_of_equally_near_texts_the_first() -> None:
    vectors = np.eye(3)
    assert representatives(list("abc"), vectors, cluster(vectors)) == [[0]]


def test_critiques_end_to_end() -> None:
    critiques = [
        *(f"The reply names no price for the {part}." for part in ("brake", "chain", "wheel", "saddle")),
        *(f"Rude tone towards {person}." for person in ("customers", "women", "beginners")),
        "",
    ]
    vectors = open_embedder("tfidf").embed(critiques)
    clusters = cluster(vectors)
    chosen = representatives(critiques, vectors, clusters)
    assert [critiques[place].split()[0] for places in chosen for place in places] == ["The", "Rude"]
