"""The alternative annotator test: an example worked by hand, the authors' procedure as a plain loop, simulations."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np
import pytest
import scipy.stats
from numpy.typing import NDArray

from raters.agreement import ScaleType
from raters.annotator_test import EPSILONS, AnnotatorTest, alternative_annotator_test
from raters.corpus_files import AnnotationTable
from raters.records import DataError

Floats = NDArray[np.float64]
_ = np.nan


@pytest.fixture(autouse=True)
def _no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def table_of(ratings: Floats) -> AnnotationTable:
    annotators, items = np.nonzero(np.isfinite(ratings))
    order = np.random.default_rng(0).permutation(len(items))
    return AnnotationTable(items[order], annotators[order], ratings[annotators, items][order])


def plain_loop(ratings: Floats, verdicts: Floats, score: str, epsilon: float) -> tuple[float, float, list[float]]:
    """Return (winning rate, advantage, p-values) by the paper's definitions, one comparison at a time."""
    p_values, advantages = [], []
    for annotator in range(len(ratings)):
        rater_wins, differences = [], []
        for item in np.flatnonzero(np.isfinite(ratings[annotator]) & np.isfinite(verdicts)):
            others = np.delete(ratings[:, item], annotator)
            others = others[np.isfinite(others)]
            if not len(others):
                continue

            def near(label: float, others: Floats = others) -> float:
                if score == "accuracy":
                    return float(np.mean(others == label))
                return -round(float(np.sqrt(np.mean((others - label) ** 2))), 9)

            person, rater = near(ratings[annotator, item]), near(verdicts[item])
            rater_wins.append(rater >= person)
            differences.append(float(person >= rater) - float(rater >= person))
        if len(differences) >= 30:
            p_values.append(float(scipy.stats.ttest_1samp(differences, epsilon, alternative="less").pvalue))
            advantages.append(float(np.mean(rater_wins)))
    adjusted = scipy.stats.false_discovery_control(p_values, method="by")
    return float(np.mean(adjusted <= 0.05)), float(np.mean(advantages)), p_values


@pytest.mark.parametrize("scale_type", ["nominal", "pairwise", "ordinal", "interval"])
@pytest.mark.parametrize("seed", range(4))
def test_as_the_plain_loop(scale_type: ScaleType, seed: int) -> None:
    chance = np.random.default_rng(seed)
    truth = chance.integers(0, 4, 150)
    ratings = np.clip(truth + chance.integers(-1, 2, (5, 150)), 0, 3).astype(float)
    verdicts = np.clip(truth + chance.integers(-1, 2, 150), 0, 3).astype(float)
    if scale_type == "interval":
        ratings, verdicts = ratings + chance.normal(size=ratings.shape), verdicts + chance.normal(size=150)
    ratings[chance.random(ratings.shape) < 0.3] = np.nan
    ratings[4, 20:] = np.nan
    verdicts[chance.random(150) < 0.1] = np.nan
    values = np.array([0.0, 1.0, 3.0, 10.0]) if scale_type == "ordinal" else None
    found = alternative_annotator_test(table_of(ratings), verdicts, scale_type, values, epsilon=0.15)

    def quantity(numbers: Floats) -> Floats:
        return (
            numbers
            if values is None
            else np.where(np.isfinite(numbers), values[np.nan_to_num(numbers).astype(int)], np.nan)
        )

    score = "accuracy" if scale_type in ("nominal", "pairwise") else "-RMSE"
    rate, advantage, p_values = plain_loop(quantity(ratings), quantity(verdicts), score, 0.15)
    assert found.score == score
    assert [each.annotator for each in found.annotators] == [0, 1, 2, 3]
    assert found.left_out == 1
    assert found.winning_rate == rate
    assert found.advantage == pytest.approx(advantage)
    assert [each.p for each in found.annotators] == pytest.approx(p_values)


def test_example_worked_by_hand() -> None:
    """Two annotators, four items, repeated ten times.

    Left out: the first. The other says 0, 0, 1, 1. The first says 0, 1, 1, 0: right, wrong, right, wrong. The rater
    says 0, 0, 0, 1: right, right, wrong, right. The rater is as near on items 1, 2, 4, the first on 1 and 3: 0.75
    against 0.5, differences 0, -1, 1, -1. Left out: the second (against 0, 1, 1, 0) is right, wrong, right, wrong, the
    rater right, wrong, wrong, wrong: 0.75 against 1, differences 0, 0, 1, 0.
    """
    ratings = np.tile([[0.0, 1, 1, 0], [0, 0, 1, 1]], 10)
    found = alternative_annotator_test(table_of(ratings), np.tile([0.0, 0, 0, 1], 10), "nominal", epsilon=0.2)
    first, second = found.annotators
    assert (first.rater_advantage, first.annotator_advantage) == (0.75, 0.5)
    assert (second.rater_advantage, second.annotator_advantage) == (0.75, 1.0)
    # 40 differences with mean -1/4 and squares 30: variance (30 - 40/16) / 39; t = (-0.25 - 0.2) / sqrt(it / 40).
    t = -0.45 / np.sqrt(27.5 / 39 / 40)
    assert first.p == pytest.approx(scipy.stats.t.cdf(t, 39))
    # mean 1/4, squares 10.
    t = (0.25 - 0.2) / np.sqrt((10 - 2.5) / 39 / 40)
    assert second.p == pytest.approx(scipy.stats.t.cdf(t, 39))
    # Benjamini and Yekutieli: the smaller of two is multiplied by 2 (1 + 1/2), the larger by 1 + 1/2, at most 1.
    assert first.adjusted_p == pytest.approx(3 * first.p)
    assert second.adjusted_p == pytest.approx(min(1, 1.5 * second.p))
    assert (first.won, second.won) == (True, False)
    assert (found.winning_rate, found.advantage, found.passed) == (0.5, 0.75, True)


def simulated(rater_error: float, scale_type: ScaleType, seed: int) -> AnnotatorTest:
    chance = np.random.default_rng(seed)
    truth = chance.integers(0, 4, 300)

    def say(error: float) -> Floats:
        wrong = chance.random(300) < error
        return np.where(wrong, chance.integers(0, 4, 300), truth).astype(float)

    ratings = np.array([say(0.3) for _ in range(4)])
    return alternative_annotator_test(table_of(ratings), say(rater_error), scale_type)


@pytest.mark.parametrize("scale_type", ["nominal", "ordinal"])
def test_a_rater_as_good_as_a_person_passes_and_a_random_one_does_not(scale_type: ScaleType) -> None:
    as_good = [simulated(0.3, scale_type, seed) for seed in range(20)]
    random = [simulated(1.0, scale_type, seed) for seed in range(20)]
    assert sum(found.passed for found in as_good) >= 19
    assert not any(found.passed for found in random)
    assert all(found.winning_rate == 0 for found in random)
    assert np.mean([found.advantage for found in as_good]) > np.mean([found.advantage for found in random]) + 0.15


def test_annotators_with_few_items_are_left_out_and_counted() -> None:
    ratings = np.tile([[0.0, 1], [0, 1], [1, 1]], 10)
    found = alternative_annotator_test(table_of(ratings), ratings[0], "nominal")
    assert np.isnan(found.winning_rate)
    assert np.isnan(found.advantage)
    assert (found.passed, found.left_out, found.annotators) == (False, 3, ())
    assert found.reason == "no annotator has 30 items that others labelled too and the rater rated"
    tested = alternative_annotator_test(table_of(ratings), ratings[0], "nominal", least_items=20)
    assert [each.test for each in tested.annotators] == ["wilcoxon"] * 3
    assert tested.annotators[0].p == pytest.approx(scipy.stats.wilcoxon(np.full(20, -0.15), alternative="less").pvalue)


@pytest.mark.parametrize(("verdict", "p"), [(0.0, 0.0), (1.0, 1.0)])
def test_differences_that_never_vary(verdict: float, p: float) -> None:
    """Three annotators who always say 0, and a rater who always agrees, or never does."""
    found = alternative_annotator_test(table_of(np.zeros((3, 40))), np.full(40, verdict), "ordinal")
    assert [each.p for each in found.annotators] == [p] * 3
    assert found.passed == (p == 0)


def test_rounding_does_not_break_ties() -> None:
    """Mirrored decimals: rater and annotator are equally far from the others, up to rounding."""
    chance = np.random.default_rng(0)
    middle, gap = chance.uniform(0, 100, 50), chance.uniform(0, 10, 50)
    ratings = np.array([middle, middle, middle + gap])
    found = alternative_annotator_test(table_of(ratings), middle - gap, "interval").annotators[2]
    assert (found.rater_advantage, found.annotator_advantage) == (1, 1)


@pytest.mark.parametrize("ratings", [np.zeros((1, 40)), np.full((3, 40), np.nan)])
def test_a_single_annotator_or_none(ratings: Floats) -> None:
    found = alternative_annotator_test(table_of(ratings), np.zeros(40), "nominal")
    assert np.isnan(found.winning_rate)
    assert found.reason


def test_no_readable_verdict() -> None:
    found = alternative_annotator_test(table_of(np.zeros((3, 40))), np.full(40, np.nan), "interval")
    assert np.isnan(found.winning_rate)
    assert found.left_out == 3


def test_epsilon_is_checked() -> None:
    assert EPSILONS == {"expert": 0.2, "skilled": 0.15, "crowd": 0.1}
    with pytest.raises(DataError, match=r"epsilon 2 is not in 0\.\.1"):
        alternative_annotator_test(table_of(np.zeros((2, 3))), np.zeros(3), "nominal", epsilon=2)
