"""Critiques of traces: clustered, and those nearest the centroids kept to stand for the rest.

The rubric stage of Zhang et al. 2026: a writer model lists each trace's critiques, one a line; hundreds of them say a
dozen things. Vectors come from `embedders`; the number of clusters is the one with the highest mean silhouette
(Rousseeuw 1987, J. Comput. Appl. Math. 20).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raters.records import ConfigError, DataError

_MOST_FOR_SILHOUETTE = 5000  # its time grows with the square
_STARTS = 10  # k-means from as many random starts


@dataclass(frozen=True)
class Clusters:
    """Groups of texts that say the same.

    Attributes:
        assignment: (texts,) cluster of each text, from 0; the largest is first.
        centroids: (clusters, width) mean of the different vectors in each.
        silhouette: Mean silhouette of the different vectors, in [-1, 1]; 0 for one cluster.
    """

    assignment: NDArray[np.int64]
    centroids: NDArray[np.float64]
    silhouette: float


def cluster(vectors: NDArray[np.float64], *, fewest: int = 2, most: int = 8, seed: int = 0) -> Clusters:
    """Return the k-means clusters of texts, as many as have the highest mean silhouette, fewer of equals.

    Equal vectors count once, or a text said thirty times would be a perfect cluster of its own. Zero vectors say
    nothing: they join the nearest centroid afterwards. There is one cluster when nothing separates: no number of
    clusters within the bounds has a mean silhouette above 0, the value of a text that is as near to another cluster
    as to its own. So it is with fewer than three different vectors, or than `fewest` + 1: each cluster by itself has
    a silhouette of 0 by definition.

    Args:
        vectors: (texts, width), rows of unit length or zero.
        fewest: Least number of clusters to try, from 2.
        most: Largest number.
        seed: Of the starts of k-means.

    Raises:
        ConfigError: If the bounds are no bounds.
        DataError: If a number is not finite.
    """
    if not 2 <= fewest <= most:
        raise ConfigError(f"clusters from {fewest} to {most}: give bounds of which the first is 2 or more")
    assert vectors.ndim == 2
    if not np.isfinite(vectors).all():
        raise DataError("vectors to cluster: some numbers are not finite; embed the texts again")
    if not len(vectors):
        return Clusters(np.empty(0, np.int64), np.empty((0, vectors.shape[1])), 0.0)
    spoken = np.flatnonzero(vectors.any(axis=1))
    if not len(spoken):
        return Clusters(np.zeros(len(vectors), np.int64), np.zeros((1, vectors.shape[1])), 0.0)
    different, which = np.unique(vectors[spoken] + 0.0, axis=0, return_inverse=True)  # + 0.0: -0.0 is 0.0
    which = which.reshape(-1)
    labels, silhouette = _best_partition(different, fewest, most, seed)
    assignment = np.empty(len(vectors), np.int64)
    assignment[spoken] = labels[which]
    centroids = np.array([different[labels == code].mean(axis=0) for code in range(labels.max() + 1)])
    silent = np.flatnonzero(~vectors.any(axis=1))
    assignment[silent] = np.linalg.norm(centroids, axis=1).argmin()
    sizes = np.bincount(assignment, minlength=len(centroids))
    firsts = [int(np.flatnonzero(assignment == code)[0]) for code in range(len(centroids))]
    order = sorted(range(len(centroids)), key=lambda code: (-sizes[code], firsts[code]))
    return Clusters(np.argsort(order)[assignment], centroids[order], silhouette)


def _best_partition(
    different: NDArray[np.float64], fewest: int, most: int, seed: int
) -> tuple[NDArray[np.int64], float]:
    """Return (cluster of each vector, mean silhouette)."""
    best, highest = np.zeros(len(different), np.int64), 0.0
    if len(different) <= fewest:
        return best, highest
    from sklearn.cluster import KMeans
    from sklearn.metrics import silhouette_score

    judged = np.random.default_rng(seed).permutation(len(different))[:_MOST_FOR_SILHOUETTE]
    for count in range(fewest, min(most, len(different) - 1) + 1):
        labels = KMeans(count, n_init=_STARTS, random_state=seed).fit_predict(different).astype(np.int64)
        if not 1 < len(set(labels[judged].tolist())) < len(judged):
            continue  # of one large cluster and a few lone texts a sample can miss the texts
        value = float(silhouette_score(different[judged], labels[judged]))
        if value > highest + 1e-9:
            best, highest = labels, value
    return best, highest


def representatives(
    texts: Sequence[str], vectors: NDArray[np.float64], clusters: Clusters, per_cluster: int = 1
) -> list[list[int]]:
    """Return for each cluster, the largest first, the places of the texts nearest its centroid, the nearest first.

    Texts that are equal but for case and blanks stand once in all clusters together. Blank texts and zero vectors
    stand for nothing, so a cluster can have fewer than `per_cluster`.

    Args:
        texts: What the vectors were made of.
        vectors: (texts, width).
        clusters: Of those vectors.
        per_cluster: Most texts of one cluster.
    """
    assert len(texts) == len(vectors) == len(clusters.assignment)
    sizes = np.bincount(clusters.assignment, minlength=len(clusters.centroids))
    taken: set[str] = set()
    chosen = []
    for code in np.argsort(-sizes, kind="stable"):
        members = np.flatnonzero((clusters.assignment == code) & vectors.any(axis=1))
        distances = np.linalg.norm(vectors[members] - clusters.centroids[code], axis=1)
        places: list[int] = []
        for place in members[np.argsort(np.round(distances, 12), kind="stable")].tolist():
            form = " ".join(texts[place].casefold().split())
            if form and form not in taken and len(places) < per_cluster:
                taken.add(form)
                places.append(place)
        chosen.append(places)
    return chosen
