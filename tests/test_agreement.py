"""Every figure against an independent library, with ties, missing values and constant columns."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping

import krippendorff
import numpy as np
import pandas as pd
import pingouin
import pytest
import scipy.stats
from numpy.typing import NDArray
from sklearn.metrics import cohen_kappa_score, mean_absolute_error, mean_squared_error

from raters.agreement import (
    ALPHA_LEVELS,
    METRICS_BY_SCALE,
    ScaleType,
    agreement,
    alpha_of_pairs,
    figures_of,
    kendall_tau_b,
    spearman_rho,
)
from raters.pairs import pairs_of
from raters.records import DataError

Floats = NDArray[np.float64]
VALUES: Mapping[str, Floats | None] = {
    "ordinal": np.array([0.0, 1.0, 5.0, 10.0]),
    "interval": None,
    "nominal": None,
    "pairwise": None,
}


@pytest.fixture(autouse=True)
def _no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def random_columns(seed: int, items: int, labels: int | None = 4, missing: float = 0.2) -> tuple[Floats, Floats]:
    """Return labels and verdicts that agree somewhat; on a scale of so many labels, or with decimals if None."""
    chance = np.random.default_rng(seed)
    common = chance.normal(size=items)
    columns = [common + chance.normal(scale=0.8, size=items) for _ in range(2)]
    if labels is not None:
        columns = [np.clip(np.floor(column + labels / 2), 0, labels - 1) for column in columns]
    for column in columns:
        column[chance.random(items) < missing] = np.nan
    return columns[0], columns[1]


def reference(labels: Floats, verdicts: Floats, scale_type: str, values: Floats | None) -> dict[str, float]:
    """Return the figures as scipy, scikit-learn, pingouin and krippendorff have them; nan where they have none."""
    complete = np.isfinite(labels) & np.isfinite(verdicts)
    x, y = labels[complete], verdicts[complete]
    u, v = (x, y) if values is None else (values[x.astype(int)], values[y.astype(int)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = {
            "kendall_tau_b": scipy.stats.kendalltau(x, y).statistic,
            "spearman_rho": scipy.stats.spearmanr(x, y).statistic,
            "mse": mean_squared_error(u, v),
            "mae": mean_absolute_error(u, v),
            "exact_agreement": np.mean(x == y),
            "within_one_step": np.mean(np.abs(x - y) <= 1),
        }
        long = pd.DataFrame(
            {"item": np.tile(np.arange(len(u)), 2), "rater": np.repeat(["a", "b"], len(u)), "value": np.r_[u, v]}
        )
        icc = pingouin.intraclass_corr(long, targets="item", raters="rater", ratings="value").set_index("Type")["ICC"]
        found["icc3_1"], found["icc3_k"] = icc["ICC(C,1)"], icc["ICC(C,k)"]
        if scale_type != "interval":
            every = list(range(4))
            found["cohen_kappa"] = cohen_kappa_score(x, y, labels=every)
            found["quadratic_kappa"] = cohen_kappa_score(x, y, labels=every, weights="quadratic")
        found["krippendorff_alpha"] = krippendorff.alpha(
            np.array([labels, verdicts]), level_of_measurement=ALPHA_LEVELS[scale_type]
        )
    return {name: float(found[name]) for name in METRICS_BY_SCALE[scale_type]}


@pytest.mark.parametrize("scale_type", ["ordinal", "interval", "nominal", "pairwise"])
@pytest.mark.parametrize("items", [5, 12, 200])
@pytest.mark.parametrize("seed", range(3))
def test_figures_are_those_of_independent_libraries(scale_type: ScaleType, items: int, seed: int) -> None:
    labels, verdicts = random_columns(seed, items, None if scale_type == "interval" else 4)
    values = VALUES[scale_type]
    expected = reference(labels, verdicts, scale_type, values)
    found = agreement(labels, verdicts, scale_type, values)
    assert found.keys() == expected.keys()
    for name, figure in found.items():
        assert figure.value == pytest.approx(expected[name], abs=1e-10, nan_ok=True), name
        assert (figure.reason == "") == np.isfinite(figure.value)


@pytest.mark.parametrize(("items", "decimals"), [(300, 1), (2000, 2), (5000, 3), (5000, 0)])
def test_rank_figures_of_interval_scales_with_many_values(items: int, decimals: int) -> None:
    """Tables, comparison of all pairs, and bins: the point is exact in each."""
    labels, verdicts = (np.round(20 * column, decimals) for column in random_columns(1, items, None))
    complete = np.isfinite(labels + verdicts)
    found = agreement(labels, verdicts, "interval")
    x, y = labels[complete], verdicts[complete]
    assert found["kendall_tau_b"].value == pytest.approx(scipy.stats.kendalltau(x, y).statistic, abs=1e-12)
    assert found["spearman_rho"].value == pytest.approx(scipy.stats.spearmanr(x, y).statistic, abs=1e-12)


def test_figures_of_weights_are_those_of_repeated_rows() -> None:
    labels, verdicts = random_columns(3, 50)
    pairs, pair_of_item = pairs_of(labels, verdicts, VALUES["ordinal"])
    chance = np.random.default_rng(0)
    times = chance.integers(0, 4, size=(20, 50))
    weights = np.array(
        [np.bincount(pair_of_item[pair_of_item >= 0], row[pair_of_item >= 0], len(pairs.counts)) for row in times]
    )
    found = figures_of(weights, pairs, "ordinal")
    for place, row in enumerate(times):
        expected = reference(np.repeat(labels, row), np.repeat(verdicts, row), "ordinal", VALUES["ordinal"])
        for name, value in expected.items():
            assert found[name][place] == pytest.approx(value, abs=1e-10), name


def test_binned_tau_moves_with_weights_as_the_exact_one_does() -> None:
    labels, verdicts = random_columns(4, 4000, None, missing=0)
    pairs, pair_of_item = pairs_of(labels, verdicts)
    assert not pairs.fit_tables
    assert len(pairs.counts) == 4000
    chance = np.random.default_rng(0)
    rows = [chance.integers(4000, size=4000) for _ in range(40)]
    weights = np.array([np.bincount(pair_of_item[row], minlength=4000) for row in rows], np.float64)
    exact = np.array([scipy.stats.kendalltau(labels[row], verdicts[row]).statistic for row in rows])
    binned = kendall_tau_b(weights, pairs)
    assert np.abs(binned - exact).max() < 0.1 * exact.std()
    expected = [scipy.stats.spearmanr(labels[row], verdicts[row]).statistic for row in rows]
    np.testing.assert_allclose(spearman_rho(weights, pairs), expected, atol=1e-12)


def test_compared_pairs_and_tables_give_one_tau() -> None:
    labels, verdicts = random_columns(5, 900, None, missing=0)
    labels, verdicts = np.round(labels * 30), np.round(verdicts * 30)
    pairs, _ = pairs_of(labels, verdicts)
    assert not pairs.fit_tables
    weights = np.random.default_rng(0).integers(0, 3, size=(5, len(pairs.counts))).astype(np.float64)
    rows = [np.repeat(np.arange(len(pairs.counts)), row.astype(int)) for row in weights]
    expected = [scipy.stats.kendalltau(pairs.labels[row], pairs.verdicts[row]).statistic for row in rows]
    np.testing.assert_allclose(kendall_tau_b(weights, pairs), expected, atol=1e-12)


@pytest.mark.parametrize("level", ["nominal", "ordinal", "interval", "ratio"])
def test_alpha_of_pairs_at_every_level(level: str) -> None:
    labels, verdicts = random_columns(6, 80)
    pairs, _ = pairs_of(labels + 1, verdicts + 1)
    expected = krippendorff.alpha(np.array([labels + 1, verdicts + 1]), level_of_measurement=level)
    assert alpha_of_pairs(pairs.counts[None], pairs, level)[0] == pytest.approx(expected)  # type: ignore[arg-type]


CONSTANT = "labels are constant"
BOTH = "labels and verdicts are constant"


@pytest.mark.parametrize(
    ("labels", "verdicts", "reasons"),
    [
        ([1, 1, 1], [0, 2, 1], {"kendall_tau_b": CONSTANT, "spearman_rho": CONSTANT}),
        ([0, 2, 1], [1, 1, 1], dict.fromkeys(("kendall_tau_b", "spearman_rho"), "verdicts are constant")),
        (
            [2, 2],
            [2, 2],
            dict.fromkeys(METRICS_BY_SCALE["ordinal"], BOTH)
            | dict.fromkeys(("mse", "mae", "exact_agreement", "within_one_step"), ""),
        ),
        (
            [2, 2],
            [1, 1],
            dict.fromkeys(("kendall_tau_b", "spearman_rho", "icc3_1", "icc3_k"), BOTH),
        ),
        (
            [2, np.nan],
            [1, 1],
            dict.fromkeys(METRICS_BY_SCALE["ordinal"], "fewer than two items")
            | dict.fromkeys(("mse", "mae", "exact_agreement", "within_one_step"), ""),
        ),
        (
            [2, np.nan],
            [np.nan, 1],
            dict.fromkeys(METRICS_BY_SCALE["ordinal"], "no item has both a label and a verdict"),
        ),
        ([], [], dict.fromkeys(METRICS_BY_SCALE["ordinal"], "no item has both a label and a verdict")),
        ([0, 2], [2, 0], {"icc3_k": "the mean of label and verdict is the same on all items"}),
    ],
)
@pytest.mark.parametrize("scale_type", ["ordinal", "interval", "nominal"])
def test_undefined_is_nan_with_a_reason(
    labels: list[float], verdicts: list[float], reasons: dict[str, str], scale_type: ScaleType
) -> None:
    found = agreement(np.array(labels, np.float64), np.array(verdicts, np.float64), scale_type)
    for name, figure in found.items():
        assert figure.reason == reasons.get(name, ""), name
        assert np.isnan(figure.value) == bool(figure.reason), name


def test_constant_decimals_leave_no_rounding_behind() -> None:
    same = np.full(7, 0.1)
    for name, figure in agreement(same, same, "interval").items():
        assert np.isnan(figure.value) == (name not in {"mse", "mae", "exact_agreement"}), name
    shifted = agreement(np.full(7, 1e6 + 0.1), np.full(7, 0.3), "interval")
    assert shifted["icc3_1"].reason == BOTH


def test_figures_of_a_scale_are_those_that_make_sense() -> None:
    labels, verdicts = random_columns(0, 30, 2)
    for scale_type in ("nominal", "pairwise"):
        found = agreement(labels, verdicts, scale_type)  # type: ignore[arg-type]
        assert found.keys() == {"exact_agreement", "cohen_kappa", "krippendorff_alpha"}
    assert not {"cohen_kappa", "quadratic_kappa", "within_one_step"} & agreement(labels, verdicts, "interval").keys()


def test_columns_of_different_length_are_refused() -> None:
    with pytest.raises(DataError, match="3 labels beside 2 verdicts"):
        agreement(np.zeros(3), np.zeros(2), "ordinal")
