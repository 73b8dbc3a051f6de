"""What a sampling run achieved, and what chance alone would have achieved.

Utilisation is the share of labels with at least one accepted draw (Zhang et al. 2026). On a coarse scale nearly
everything is accepted by chance, so every figure stands beside a null: the same draws held against permuted
labels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raters.drawing import is_swapped
from raters.ledger import CHANCES, UNDRAWN, Ledger
from raters.plots import new_plot, save_plot
from raters.sampling import SamplingOptions, giving_up_of
from raters.scales import IntervalScale, PairwiseScale, listed_labels

DRAW_COUNTS = (1, 2, 4, 8, 16, 32, 64)
_MOST_NULL_LABELS = 101
_INTERVAL_BINS = 5
_ROUNDING = 1e-9


def utilisation(matched_draw: NDArray[np.int64], k: int) -> float:
    """Return the share of labels matched within the first k draws.

    Args:
        matched_draw: (units,) first accepted draw, counted from 0; -1 if none.
        k: How many draws.
    """
    return float(((matched_draw >= 0) & (matched_draw < k)).mean())


def shuffled_label_null(
    numbers: NDArray[np.float64],
    weights: NDArray[np.float64],
    unit_numbers: NDArray[np.float64],
    tolerance: float,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the utilisation at 1 .. k draws that permuted labels would have, the mean over all permutations.

    A permuted label is one of all labels with the frequency it has, whatever the item. So a row contributes the
    frequency of the labels that come up in its first 1 .. k draws. Only rows that have all their draws can tell:
    a row that stopped at its own match would count what was easy as though it were short of draws.

    Args:
        numbers: (rows, k) verdicts as numbers, nan if unreadable; all draws made.
        weights: (rows,) labels of each row.
        unit_numbers: (units,) every label as a number.
        tolerance: How far a verdict may be from a label.

    Returns:
        (k,) expected share of labels matched within 1 .. k draws, and (k,) its standard error over rows.
    """
    labels, counts = _frequencies(unit_numbers)
    mean, spread = np.zeros(numbers.shape[1]), np.zeros(numbers.shape[1])
    came_up = np.zeros((len(labels), len(numbers)), bool)
    for draw in range(numbers.shape[1]):  # one by one: for a million rows, what all of them need is a gigabyte
        share = np.zeros(len(numbers))
        for place, label in enumerate(labels):
            came_up[place] |= np.abs(numbers[:, draw] - label) <= tolerance + _ROUNDING
            share += counts[place] / counts.sum() * came_up[place]
        mean[draw] = np.average(share, weights=weights)
        spread[draw] = np.square(weights * (share - mean[draw])).sum()
    return mean, np.sqrt(spread) / weights.sum()


def _null_points(ledger: Ledger, options: SamplingOptions) -> tuple[dict[int, tuple[float, float]], int]:
    """Return (null, standard deviation) by number of draws, and how many rows it stands on.

    The deviation is that of one permutation's utilisation, about that of as many independent labels, together with
    the error of the estimate. One draw can be told from every row, more only from rows with all their draws.
    """
    numbers, tolerance = ledger.numbers["first"], options.tolerance
    weights = np.bincount(ledger.unit_rows, minlength=len(numbers)).astype(float)
    full = (numbers != UNDRAWN).all(axis=1)
    full[options.full_rows(len(numbers)) :] = False
    points: dict[int, tuple[float, float]] = {}
    for count in _draw_counts(numbers.shape[1]):
        rows = numbers[:, 0] != UNDRAWN if count == 1 else full
        if not rows.any():
            continue
        chosen = slice(None) if rows.all() else rows  # a view takes no memory
        mean, error = shuffled_label_null(numbers[chosen, :count], weights[chosen], ledger.unit_numbers, tolerance)
        null, estimated = float(mean[-1]), not full.all()
        # A few rows that all agree do not make a null certain (Agresti and Coull 1998: two more of each kind).
        cautious = (null * rows.sum() + 2) / (rows.sum() + 4) if estimated else null
        variance = cautious * (1 - cautious) / len(ledger.unit_rows)
        error_variance = error[-1] ** 2 if error[-1] > 0 else cautious * (1 - cautious) / rows.sum()
        points[count] = (null, float(np.sqrt(variance + error_variance * estimated)))
    return points, int(full.sum())


def _frequencies(unit_numbers: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the labels and how often each occurs; an evenly spaced sample of them if they are very many."""
    labels, counts = np.unique(unit_numbers, return_counts=True)
    if len(labels) > _MOST_NULL_LABELS:
        places = np.linspace(0, len(unit_numbers) - 1, _MOST_NULL_LABELS).round().astype(int)
        labels, counts = np.unique(np.sort(unit_numbers)[places], return_counts=True)
    return labels, counts


def self_agreement(numbers: NDArray[np.float64], tolerance: float = 0.0) -> tuple[float | None, int]:
    """Return the share of pairs of draws of one row with the same verdict, and the number of rows with a pair.

    Args:
        numbers: (rows, k) verdicts as numbers; what was not drawn or not read makes no pair.
        tolerance: How far apart two verdicts may be.
    """
    same = pairs = rows = 0
    for row in numbers:
        readable = row[np.isfinite(row)]
        if (count := len(readable)) > 1:
            alike = np.abs(readable[:, None] - readable[None, :]) <= tolerance + _ROUNDING
            same += int(alike.sum()) - count
            pairs += count * (count - 1)
            rows += 1
    return (same / pairs if pairs else None), rows


def summarise(ledger: Ledger, options: SamplingOptions) -> dict[str, Any]:
    """Return the summary of a run as plain values, as it stands in `summary.json`.

    Args:
        ledger: What was drawn and matched.
        options: How it was drawn.
    """
    numbers = ledger.numbers["first"]
    k = numbers.shape[1]
    in_first = np.where(ledger.matched_chance == 0, ledger.matched_draw, -1)
    null, null_rows = _null_points(ledger, options)
    missing = (None, None)
    kept = ledger.matched_draw >= 0
    units, fixed_draws = len(kept), len(ledger.rows) * k
    draws = ledger.totals.draws
    return {
        "items": len(ledger.rows),
        "labels": units,
        "k": k,
        "strategy": options.strategy,
        "utilisation": [
            {"k": count, "share": utilisation(in_first, count),
             "null": null.get(count, missing)[0], "null_sd": null.get(count, missing)[1]}
            for count in _draw_counts(k)
        ],
        "given_up": None if (giving_up := giving_up_of(ledger, options)) is None else giving_up.summary(),
        "null_items": null_rows,
        "kept": int(kept.sum()),
        "kept_by_chance": {
            chance: int((kept & (ledger.matched_chance == rank)).sum())
            for rank, chance in enumerate(CHANCES) if chance in ledger.numbers
        },
        "draws": dict(draws),
        "first_draws_per_kept_trace": _ratio(draws["first"], int((in_first >= 0).sum())),
        "fixed_k_draws_per_kept_trace": _ratio(fixed_draws, int((in_first >= 0).sum())),
        "unreadable": ledger.totals.unreadable,
        "unreadable_share": _ratio(ledger.totals.unreadable, sum(draws.values())),
        "finish_reasons": dict(ledger.totals.finish_reasons),
        "prompt_tokens": ledger.totals.prompt_tokens,
        "completion_tokens": ledger.totals.completion_tokens,
        "draws_without_token_count": ledger.totals.uncounted,
        "coverage_by_label": _coverage_by_label(ledger, kept),
        "coverage_by_human_agreement": _coverage_by_agreement(ledger, kept),
        "unmatched": _unmatched(ledger, kept),
        "self_agreement": _self_agreement(ledger, options),
        "position": _position(ledger, options),
    }  # fmt: skip


def _draw_counts(k: int) -> list[int]:
    return sorted({count for count in DRAW_COUNTS if count < k} | {k})


def _ratio(count: float, of: float) -> float | None:
    return count / of if of else None


def _bins(ledger: Ledger) -> tuple[list[str], NDArray[np.int64]]:
    """Return a name for each label (a fifth of an interval scale), and each unit's place among them."""
    scale = ledger.dimension.scale
    if labels := listed_labels(scale):
        return [str(label) for label in labels], ledger.unit_numbers.astype(np.int64)
    low, high = float(scale.min), float(scale.max)  # type: ignore[union-attr]
    edges = np.linspace(low, high, _INTERVAL_BINS + 1)
    names = [f"{start:g}..{stop:g}" for start, stop in pairwise(edges)]
    return names, np.clip(np.searchsorted(edges, ledger.unit_numbers, side="right") - 1, 0, _INTERVAL_BINS - 1)


def _coverage_by_label(ledger: Ledger, kept: NDArray[np.bool_]) -> list[dict[str, Any]]:
    names, places = _bins(ledger)
    return [
        {
            "label": name,
            "labels": int(here.sum()),
            "kept": int((here & kept).sum()),
            "coverage": _ratio(int((here & kept).sum()), int(here.sum())),
            "share_of_labels": _ratio(int(here.sum()), len(kept)),
            "share_of_kept": _ratio(int((here & kept).sum()), int(kept.sum())),
        }
        for place, name in enumerate(names)
        for here in [places == place]
    ]


def _coverage_by_agreement(ledger: Ledger, kept: NDArray[np.bool_]) -> list[dict[str, Any]] | None:
    if isinstance(ledger.dimension.scale, IntervalScale):
        return None  # people hardly ever give the very same number
    share = ledger.human_agreement
    bands = (
        ("everyone agrees", share >= 1),
        ("most agree", (share < 1) & (share > 0.5)),
        ("half or fewer", share <= 0.5),
    )
    return [
        {"annotators": name, "labels": int(here.sum()), "kept": int((here & kept).sum()),
         "coverage": _ratio(int((here & kept).sum()), int(here.sum()))}
        for name, here in bands
    ]  # fmt: skip


def nearest_verdict(ledger: Ledger, unit: int) -> tuple[float, float] | None:
    """Return (verdict, distance) of the readable verdict nearest to a unit's label; None if there is none."""
    scale = ledger.dimension.scale
    row = int(ledger.unit_rows[unit])
    found = [ledger.numbers[chance][row] for chance in ("first", "escalated") if chance in ledger.numbers]
    readable = np.unique(np.concatenate(found))
    readable = readable[np.isfinite(readable)]
    if not len(readable):
        return None
    label = scale.label(float(ledger.unit_numbers[unit]))
    distances = [scale.distance(scale.label(float(number)), label) for number in readable]
    best = int(np.argmin(distances))
    return float(readable[best]), float(distances[best])


def _unmatched(ledger: Ledger, kept: NDArray[np.bool_]) -> dict[str, Any]:
    scale = ledger.dimension.scale
    step = (scale.max - scale.min) / 10 if isinstance(scale, IntervalScale) else None
    distances: Counter[float] = Counter()
    for unit in np.flatnonzero(~kept):
        nearest = nearest_verdict(ledger, int(unit))
        distance = np.inf if nearest is None else nearest[1]
        distances[distance if step is None or nearest is None else step * np.ceil(distance / step)] += 1
    by_distance = {
        "nothing readable" if distance == np.inf else f"{distance:g}" if step is None else f"up to {distance:g}": count
        for distance, count in sorted(distances.items())
    }
    return {"labels": int((~kept).sum()), "by_distance_of_nearest_verdict": by_distance}


def _self_agreement(ledger: Ledger, options: SamplingOptions) -> dict[str, Any]:
    # Of the rows with all their draws: one that stopped early has two draws only if its first missed the label.
    numbers = ledger.numbers["first"][: options.full_rows(len(ledger.rows))]
    share, rows = self_agreement(numbers, options.tolerance)
    return {"share": share, "items": rows}


def _position(ledger: Ledger, options: SamplingOptions) -> dict[str, Any] | None:
    """Return how often the text shown first was chosen; None if the scale is not pairwise.

    Every second draw of an item sees the texts exchanged, so a model without position bias chooses the first in
    half of its decisions. Of an item that stopped early only the first draw counts, the others being selected.
    """
    scale = ledger.dimension.scale
    if not isinstance(scale, PairwiseScale):
        return None
    numbers = ledger.numbers["first"].copy()
    numbers[options.full_rows(len(numbers)) :, 1:] = UNDRAWN
    swapped_first = np.array(
        [is_swapped(options.seed, ledger.corpus.item_ids[i], ledger.dimension.name, 0) for i in ledger.rows], bool
    )
    swapped = (swapped_first[:, None] + np.arange(numbers.shape[1]) // options.together) % 2 == 1
    decided = (numbers == 0) | (numbers == 1)
    chose_first = decided & ((numbers == 0) != swapped)
    chosen, decisions = chose_first.sum(axis=1), decided.sum(axis=1)
    total = int(decisions.sum())
    share = _ratio(int(chosen.sum()), total)
    # Draws of one item are not independent: the variance of the ratio sums over each item first.
    half_width = None if share is None else 1.96 * float(np.sqrt(np.square(chosen - share * decisions).sum())) / total
    return {"chose_first_shown": share, "decisions": total, "half_width_95": half_width}


def plot_utilisation(summary: Mapping[str, Any], path: Path, title: str) -> None:
    """Draw utilisation beside its null over the number of draws, as SVG."""
    points: Sequence[Mapping[str, float]] = summary["utilisation"]
    counts = [point["k"] for point in points]
    figure, axes = new_plot(title, percentages=True)
    known = [point for point in points if point["null"] is not None]
    known_counts = [point["k"] for point in known]
    null = np.array([100 * point["null"] for point in known])
    band = np.array([196 * point["null_sd"] for point in known])
    axes.fill_between(known_counts, null - band, null + band, color="0.85", label="_")
    axes.plot(
        known_counts, null, color="0.45", linestyle="--", marker="o", markersize=3, label="permuted labels (± 95 %)"
    )
    axes.plot(counts, [100 * point["share"] for point in points], color="C0", marker="o", label="people's labels")
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.set(xlabel="draws for an item", ylabel="labels with an accepted draw (%)", ylim=(0, 102))
    axes.legend(frameon=False, loc="lower right")
    save_plot(figure, path)
