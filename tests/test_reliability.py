"""Agreement among several, against independent libraries and published examples; the ceiling, against plain loops."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import krippendorff
import numpy as np
import pandas as pd
import pingouin
import pytest
from numpy.typing import NDArray

from raters.agreement import METRICS_BY_SCALE, Level, agreement
from raters.corpus_files import AnnotationTable
from raters.records import DataError
from raters.reliability import against_others, alpha_sums, ceiling_sums, icc3, krippendorff_alpha, labels_suffice

Floats = NDArray[np.float64]
_ = np.nan

KRIPPENDORFF = np.array(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, _, _, _],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, _, 3],
        [_, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, _],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, _],
    ]
)
"""Krippendorff 2011, section D: four observers, twelve units, missing data."""

SHROUT_AND_FLEISS = np.array(
    [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]], float
)
"""Shrout and Fleiss 1979, table 2: six targets, four judges."""


@pytest.fixture(autouse=True)
def _no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def table_of(ratings: Floats) -> AnnotationTable:
    """Return (annotators, items) numbers as rows in a random order."""
    annotators, items = np.nonzero(np.isfinite(ratings))
    order = np.random.default_rng(0).permutation(len(items))
    return AnnotationTable(items[order], annotators[order], ratings[annotators, items][order])


def random_ratings(seed: int, coders: int, units: int, labels: int | None, missing: float = 0.4) -> Floats:
    chance = np.random.default_rng(seed)
    ratings = chance.normal(size=units) + chance.normal(scale=0.7, size=(coders, units))
    if labels is not None:
        ratings = np.clip(np.floor(ratings + labels / 2), 0, labels - 1)
    ratings[chance.random(ratings.shape) < missing] = np.nan
    return ratings


@pytest.mark.parametrize(
    ("level", "alpha"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849), ("ratio", 0.797)]
)
def test_alpha_of_the_published_example(level: Level, alpha: float) -> None:
    assert krippendorff_alpha(KRIPPENDORFF, level).value == pytest.approx(alpha, abs=5e-4)


def test_icc_of_the_published_example() -> None:
    single, average = icc3(SHROUT_AND_FLEISS)
    assert single.value == pytest.approx(0.71, abs=5e-3)
    assert average.value == pytest.approx(0.91, abs=5e-3)


@pytest.mark.parametrize("level", ["nominal", "ordinal", "interval", "ratio"])
@pytest.mark.parametrize("seed", range(8))
def test_alpha_is_that_of_the_krippendorff_package(level: Level, seed: int) -> None:
    ratings = random_ratings(seed, 2 + seed % 4, 10 + 20 * seed, 5) + 1
    expected = krippendorff.alpha(ratings, level_of_measurement=level)
    assert krippendorff_alpha(ratings, level).value == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("units", [12, 60])
def test_interval_alpha_of_many_values(units: int) -> None:
    ratings = random_ratings(1, 4, units, None)
    expected = krippendorff.alpha(ratings, level_of_measurement="interval")
    assert krippendorff_alpha(ratings, "interval").value == pytest.approx(expected, abs=1e-10)


def test_alpha_takes_labels_for_their_quantities() -> None:
    ratings, values = random_ratings(2, 3, 50, 3), np.array([0.0, 5.0, 20.0])
    quantities = np.where(np.isfinite(ratings), values[np.nan_to_num(ratings).astype(int)], np.nan)
    for level in ("interval", "ordinal"):
        expected = krippendorff.alpha(quantities, level_of_measurement=level)
        assert krippendorff_alpha(ratings, level, values).value == pytest.approx(expected)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("ratings", "reason"),
    [
        ([[1, 1, 1], [1, 1, 1]], "all labels are the same"),
        ([[1, 2, _], [_, _, 3]], "no item has two labels"),
        ([[_, _, _], [_, _, _]], "no item has two labels"),
    ],
)
@pytest.mark.parametrize("level", ["nominal", "ordinal", "interval", "ratio"])
def test_undefined_alpha_has_a_reason(ratings: list[list[float]], reason: str, level: Level) -> None:
    figure = krippendorff_alpha(np.array(ratings), level)
    assert np.isnan(figure.value)
    assert figure.reason == reason


@pytest.mark.parametrize("seed", range(5))
def test_icc_is_that_of_pingouin(seed: int) -> None:
    ratings = random_ratings(seed, 2 + seed, 20, 7 if seed % 2 else None, missing=0.1).T
    complete = ratings[np.isfinite(ratings).all(axis=1)]
    items, raters = complete.shape
    long = pd.DataFrame(
        {
            "item": np.repeat(np.arange(items), raters),
            "rater": np.tile(np.arange(raters), items),
            "value": complete.ravel(),
        }
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = pingouin.intraclass_corr(long, targets="item", raters="rater", ratings="value")
    expected = table.set_index("Type")["ICC"]
    single, average = icc3(ratings)
    assert single.value == pytest.approx(expected["ICC(C,1)"], abs=1e-10)
    assert average.value == pytest.approx(expected["ICC(C,k)"], abs=1e-10)


@pytest.mark.parametrize(
    ("ratings", "reasons"),
    [
        ([[1, 2], [_, 3]], ["fewer than two items that all have rated"] * 2),
        ([[1, 2], [1, 2]], ["every rater gives all items one value", "the mean over raters is the same on all items"]),
        ([[1, 2], [2, 1]], ["", "the mean over raters is the same on all items"]),
    ],
)
def test_undefined_icc_has_a_reason(ratings: list[list[float]], reasons: list[str]) -> None:
    figures = icc3(np.array(ratings, np.float64))
    assert [figure.reason for figure in figures] == reasons
    assert [bool(np.isnan(figure.value)) for figure in figures] == [bool(reason) for reason in reasons]


def test_icc_of_one_rater_is_refused() -> None:
    with pytest.raises(DataError, match="two or more"):
        icc3(np.zeros((3, 1)))


def lower_median(numbers: Floats) -> float:
    return float(np.sort(numbers)[(len(numbers) - 1) // 2])


def majority(numbers: Floats) -> float | None:
    found, counts = np.unique(numbers, return_counts=True)
    best = found[counts == counts.max()]
    return float(best[0]) if len(best) == 1 else None


@pytest.mark.parametrize("aggregate", [lower_median, majority])
@pytest.mark.parametrize("labels", [3, None])
def test_gold_of_the_others(aggregate: object, labels: int | None) -> None:
    ratings = random_ratings(0, 5, 60, labels)
    table = table_of(ratings)
    found = against_others(table, aggregate)  # type: ignore[arg-type]
    for place, (item, annotator) in enumerate(zip(table.items, table.annotators, strict=True)):
        others = np.delete(ratings[:, item], annotator)
        others = others[np.isfinite(others)]
        expected = aggregate(others) if len(others) else None  # type: ignore[operator]
        assert found[place] == pytest.approx(np.nan if expected is None else expected, nan_ok=True)


def test_gold_of_the_others_is_worked_out_once_for_the_same_labels() -> None:
    ratings = random_ratings(0, 5, 2000, 3, missing=0)
    calls: list[Floats] = []

    def counted(numbers: Floats) -> float:
        calls.append(numbers)
        return lower_median(numbers)

    against_others(table_of(ratings), counted)
    assert len(calls) == len({tuple(numbers) for numbers in calls}) <= 15


def test_gold_of_no_labels() -> None:
    none = np.array([], np.int64)
    assert len(against_others(AnnotationTable(none, none, np.array([])), lower_median)) == 0


@pytest.mark.parametrize("scale_type", ["ordinal", "interval", "nominal"])
def test_ceiling_is_the_mean_over_annotators(scale_type: str) -> None:
    ratings = random_ratings(7, 4, 50, None if scale_type == "interval" else 4)
    ratings[3] = np.where(np.isfinite(ratings[3]), 1.0, np.nan)  # says one and the same throughout
    values = np.array([0.0, 1.0, 4.0, 9.0]) if scale_type == "ordinal" else None
    table = table_of(ratings)
    groups = np.arange(50)
    found = ceiling_sums(table, groups, scale_type, lower_median, values, pooled=False).points()  # type: ignore[arg-type]
    gold = np.full(ratings.shape, np.nan)
    gold[table.annotators, table.items] = against_others(table, lower_median)
    for name in METRICS_BY_SCALE[scale_type]:
        each = [agreement(gold[j], ratings[j], scale_type, values)[name].value for j in range(4)]  # type: ignore[arg-type]
        weights = np.isfinite(gold).sum(axis=1) * np.isfinite(each)
        assert found[name].value == pytest.approx(np.average(np.nan_to_num(each), weights=weights)), name
        if name == "kendall_tau_b":
            assert np.isnan(each[3])


def test_pooled_ceiling_takes_all_labels_for_one_person() -> None:
    ratings = random_ratings(8, 30, 40, 4, missing=0.9)
    table = table_of(ratings)
    found = ceiling_sums(table, np.arange(40), "ordinal", lower_median, pooled=True).points()
    expected = agreement(against_others(table, lower_median), table.numbers, "ordinal")
    assert {name: figure.value for name, figure in found.items()} == pytest.approx(
        {name: figure.value for name, figure in expected.items()}
    )


@pytest.mark.parametrize("pooled", [False, True])
def test_ceiling_of_one_annotator_has_a_reason(pooled: bool) -> None:
    table = table_of(np.array([[1.0, 2.0, 3.0]]))
    for figure in ceiling_sums(table, np.arange(3), "ordinal", lower_median, pooled=pooled).points().values():
        assert np.isnan(figure.value)
        assert figure.reason == "no item has a gold label beside another label"


def test_ceiling_that_nobody_has() -> None:
    table = table_of(np.ones((3, 10)))
    points = ceiling_sums(table, np.arange(10), "ordinal", lower_median, pooled=False).points()
    assert points["kendall_tau_b"].reason == "undefined for every annotator"
    assert points["exact_agreement"].value == 1


def test_labels_suffice_where_half_come_from_busy_people() -> None:
    assert labels_suffice(np.repeat([0, 1], [20, 20]))
    assert labels_suffice(np.r_[np.zeros(20, int), 1 + np.arange(20)])
    assert not labels_suffice(np.r_[np.zeros(20, int), 1 + np.arange(21)])
    assert not labels_suffice(np.array([], np.int64))


def test_items_without_a_second_label_do_not_count_for_alpha() -> None:
    ratings = random_ratings(9, 3, 30, 4)
    alone = np.isfinite(ratings).sum(axis=0) < 2
    assert alone.any()
    table = table_of(ratings)
    sums = alpha_sums(table, np.arange(30), "ordinal")
    assert not set(sums.groups) & set(np.flatnonzero(alone))
