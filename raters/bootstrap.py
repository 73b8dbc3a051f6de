"""Intervals and paired tests: figures over resamples of groups of items, from sums instead of rows.

Items of one group (a topic, a document) are not independent, so groups are drawn, not items. A figure needs only sums
over items (`Sums`), hence a resample is a vector of how often each group was drawn, times a matrix of the groups'
sums. Groups with the same sums are drawn together, as one multinomial count: exact, and fast where groups are items.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from raters.agreement import Figure, ScaleType, figures_of, why_undefined
from raters.intervals import Difference, Interval, bca_of, difference_of
from raters.pairs import Codes, Floats, pairs_of

if TYPE_CHECKING:
    from scipy.sparse import csr_array

RESAMPLES = 2000
LEAST_GROUPS = 20
"""With fewer groups than this, items are drawn themselves; whoever calls says so."""

_BLOCK_NUMBERS = 8_000_000
"""How many numbers a block of resamples may hold at once (64 MB, and a few copies of it)."""
_BLOCK_ROWS = 2000
_MOST_JACKKNIFE_NUMBERS = 200_000_000
_JACKKNIFE_BLOCKS = 200


@dataclass(frozen=True)
class Sums:
    """What some figures need to know of each group of items, as entries of a sparse matrix (groups, cells).

    Attributes:
        groups: (entries,) group of each entry.
        cells: (entries,) what is counted: a pair of label and verdict, say.
        counts: (entries,) how much of it; entries of the same group and cell add up.
        num_groups: How many groups there are, also those without an entry.
        num_cells: How many cells there are.
        figures: From (n, cells) sums over items to (n,) figures by name, nan where undefined.
        why: From a figure's name and its (1, cells) sums to why it is undefined.
    """

    groups: Codes
    cells: Codes
    counts: Floats
    num_groups: int
    num_cells: int
    figures: Callable[[Floats], dict[str, Floats]]
    why: Callable[[str, Floats], str]

    def totals(self) -> Floats:
        """Return the (1, cells) sums over all groups."""
        return np.bincount(self.cells, self.counts, minlength=self.num_cells).astype(np.float64)[None]

    def points(self) -> dict[str, Figure]:
        """Return the figures of the data themselves, without intervals."""
        totals = self.totals()
        return {
            name: Figure(float(found[0]), "" if np.isfinite(found[0]) else self.why(name, totals))
            for name, found in self.figures(totals).items()
        }


@dataclass(frozen=True)
class Resampled:
    """Figures of the data, of their resamples, and of the data without one group at a time.

    Attributes:
        points: Figure by (name of the sums, name of the figure).
        draws: (resamples,) likewise.
        without_one: (jackknife blocks,) likewise.
        multiplicity: (jackknife blocks,) how many groups each stands for.
        reasons: Why a figure is undefined, where it is.
        num_groups: How many groups were drawn from.
    """

    points: Mapping[tuple[str, str], float]
    draws: Mapping[tuple[str, str], Floats]
    without_one: Mapping[tuple[str, str], Floats]
    multiplicity: Floats
    reasons: Mapping[tuple[str, str], str]
    num_groups: int

    def interval(self, name: str, figure: str, confidence: float = 0.95) -> Interval:
        """Return a figure with its interval (see the head of `intervals`).

        Args:
            name: Whose figure: a key of what was given to `bootstrap`.
            figure: Which figure.
            confidence: How often the interval is to hold the truth.
        """
        key = (name, figure)
        value = self.points[key]
        if key in self.reasons:
            return Interval(value, np.nan, np.nan, self.reasons[key])
        draws = self.draws[key]
        undefined = float(np.isnan(draws).mean())
        bca = bca_of(value, draws, self.without_one[key], self.multiplicity, self.num_groups)
        if isinstance(bca, str):
            return Interval(value, np.nan, np.nan, bca, undefined)
        low, high = bca.ends(confidence)
        return Interval(value, low, high, "", undefined)

    def difference(
        self,
        first: str,
        second: str,
        figure: str,
        confidence: float = 0.95,
        *,
        called: tuple[str, str] | None = None,
    ) -> Difference:
        """Return a figure of one rater minus that of another, with interval and p, on the same resamples.

        The sums of both should be of the same items: mask what only one of the raters has rated before.

        Args:
            first: Name of the sums of one rater.
            second: Name of those of the other.
            figure: Which figure.
            confidence: How often the interval is to hold the truth.
            called: What a reason calls the two; the names of their sums if None.
        """
        one, other = (first, figure), (second, figure)
        for key, name in zip((one, other), called or (first, second), strict=True):
            if key in self.reasons:
                return Difference(np.nan, np.nan, np.nan, np.nan, f"{name}: {self.reasons[key]}")
        value = self.points[one] - self.points[other]
        draws = self.draws[one] - self.draws[other]
        return difference_of(value, draws, self.num_groups, confidence)


def agreement_sums(
    labels: Floats,
    verdicts: Floats,
    groups: Codes,
    scale_type: ScaleType,
    values: Sequence[float] | Floats | None = None,
) -> Sums:
    """Return the sums for every figure of one rater against people.

    Args:
        labels: (items,) labels as the scale's numbers, nan if there is none.
        verdicts: (items,) verdicts likewise, nan if unreadable.
        groups: (items,) group of each item, counted from 0.
        scale_type: The scale's type.
        values: Quantity of each listed label; None if it is its number.
    """
    pairs, pair_of_item = pairs_of(labels, verdicts, values)
    complete = pair_of_item >= 0
    return Sums(
        groups[complete],
        pair_of_item[complete],
        np.ones(int(complete.sum())),
        int(groups.max(initial=-1)) + 1,
        len(pairs.counts),
        lambda weights: figures_of(weights, pairs, scale_type),
        lambda name, weights: why_undefined(name, weights, pairs),
    )


def groups_or_items(groups: Codes) -> tuple[Codes, bool]:
    """Return what to draw: group codes from 0 if there are at least `LEAST_GROUPS`, else a code for every item.

    Args:
        groups: (items,) any code of each item's group.

    Returns:
        (items,) codes without gaps, and whether they are those of groups.
    """
    found, codes = np.unique(groups, return_inverse=True)
    if len(found) >= LEAST_GROUPS:
        return codes.astype(np.int64), True
    return np.arange(len(groups), dtype=np.int64), False


def bootstrap(sums: Mapping[str, Sums], resamples: int = RESAMPLES, seed: int = 0) -> Resampled:
    """Return figures of the data and of resamples of their groups, all figures on the same resamples.

    Args:
        sums: What to evaluate, by name: one entry for each rater, one for people among themselves.
        resamples: How many.
        seed: Same seed and same sums, same resamples.
    """
    num_groups = max((each.num_groups for each in sums.values()), default=0)
    matrices, times = _merged_groups({name: _matrix(each, num_groups) for name, each in sums.items()}, num_groups)
    points: dict[tuple[str, str], float] = {}
    reasons: dict[tuple[str, str], str] = {}
    for name, each in sums.items():
        for figure, point in each.points().items():
            points[name, figure] = point.value
            if point.reason:
                reasons[name, figure] = point.reason
    widest = max((each.num_cells for each in sums.values()), default=0)
    rows = min(_BLOCK_ROWS, max(1, _BLOCK_NUMBERS // max(1, len(times) + widest)))
    draws: dict[tuple[str, str], list[Floats]] = {key: [] for key in points}
    if num_groups:
        for weights in _weights(times, resamples, rows, np.random.default_rng(seed)):
            for name, each in sums.items():
                for figure, found in each.figures(_product(weights, matrices[name])).items():
                    draws[name, figure].append(found)
    without_one, multiplicity = _jackknife(sums, matrices, times, rows)
    return Resampled(
        points,
        {key: np.concatenate(found) if found else np.array([]) for key, found in draws.items()},
        without_one,
        multiplicity,
        reasons,
        num_groups,
    )


def _matrix(sums: Sums, num_groups: int) -> csr_array:
    from scipy.sparse import coo_array

    return coo_array((sums.counts, (sums.groups, sums.cells)), shape=(num_groups, sums.num_cells)).tocsr()


def _merged_groups(matrices: Mapping[str, csr_array], num_groups: int) -> tuple[dict[str, csr_array], Floats]:
    """Return the matrices with a row for each kind of group, and (kinds,) how many groups are of it.

    Groups are of one kind if all their sums are the same. Two 64-bit hashes tell: a row's sum of hashed entries.
    """
    chance = np.random.default_rng(0)
    hashes = np.zeros((num_groups, 2), np.uint64)
    for matrix in matrices.values():
        for column in range(2):
            of_cell = chance.integers(1 << 63, size=matrix.shape[1], dtype=np.uint64) | np.uint64(1)
            entries = _mixed(of_cell[matrix.indices] ^ matrix.data.view(np.uint64))
            filled = np.flatnonzero(np.diff(matrix.indptr))
            if len(filled):
                hashes[filled, column] += np.add.reduceat(entries, matrix.indptr[filled])
            hashes[:, column] = _mixed(hashes[:, column])
    _, first, times = np.unique(hashes, axis=0, return_index=True, return_counts=True)
    order = np.argsort(first)
    kept = first[order]
    return {name: matrix[kept] for name, matrix in matrices.items()}, times[order].astype(np.float64)


def _mixed(
    numbers: np.ndarray[tuple[int, ...], np.dtype[np.uint64]],
) -> np.ndarray[tuple[int, ...], np.dtype[np.uint64]]:
    """Return 64-bit numbers scrambled one to one: the finaliser of splitmix64 (Steele et al. 2014, OOPSLA)."""
    mixed = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _weights(times: Floats, resamples: int, rows: int, chance: np.random.Generator) -> Iterator[Floats]:
    """Yield (up to `rows`, kinds) how often a group of each kind was drawn, until there are enough resamples."""
    num_groups = int(times.sum())
    few_kinds = 8 * len(times) < num_groups
    kind_of_group = np.repeat(np.arange(len(times)), times.astype(np.int64))
    for start in range(0, resamples, rows):
        count = min(rows, resamples - start)
        if few_kinds:
            yield chance.multinomial(num_groups, times / num_groups, size=count).astype(np.float64)
        else:
            drawn = [kind_of_group[chance.integers(num_groups, size=num_groups)] for _ in range(count)]
            yield np.stack([np.bincount(kinds, minlength=len(times)) for kinds in drawn]).astype(np.float64)


def _product(weights: Floats, matrix: csr_array) -> Floats:
    return np.ascontiguousarray((matrix.T @ weights.T).T)


def _jackknife(
    sums: Mapping[str, Sums], matrices: Mapping[str, csr_array], times: Floats, rows: int
) -> tuple[dict[tuple[str, str], Floats], Floats]:
    """Return figures without one group of each kind, and (kinds,) how many groups are of it.

    Where kinds times cells are very many, blocks of groups are left out instead, 200 in all: the acceleration is that
    of single groups, as the skewness of a sum of d falls by sqrt(d) and the number of blocks by d.
    """
    from scipy.sparse import coo_array, csr_array, eye_array

    kinds = len(times)
    blocks, multiplicity = eye_array(kinds, format="csr"), times
    widest = max((each.num_cells for each in sums.values()), default=0)
    if kinds > _JACKKNIFE_BLOCKS and kinds * widest > _MOST_JACKKNIFE_NUMBERS:
        kind_of_group = np.repeat(np.arange(kinds), times.astype(np.int64))
        block_of = np.random.default_rng(0).permutation(len(kind_of_group)) % _JACKKNIFE_BLOCKS
        entries = (np.ones(len(kind_of_group)), (block_of, kind_of_group))
        blocks = csr_array(coo_array(entries, shape=(_JACKKNIFE_BLOCKS, kinds)))
        multiplicity = np.ones(_JACKKNIFE_BLOCKS)
    found: dict[tuple[str, str], list[Floats]] = {}
    for name, each in sums.items():
        totals, left_out = times @ matrices[name], blocks @ matrices[name]
        for start in range(0, left_out.shape[0], rows):
            for figure, values in each.figures(totals[None] - left_out[start : start + rows].toarray()).items():
                found.setdefault((name, figure), []).append(values)
    return {key: np.concatenate(values) for key, values in found.items()}, multiplicity
