"""Resamples from sums, against a plain loop over rows; coverage and false positives by simulation."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Iterator

import krippendorff
import numpy as np
import pytest
import scipy.stats
from numpy.typing import NDArray

import raters.bootstrap
from raters.agreement import METRICS_BY_SCALE, agreement, figures_of
from raters.bootstrap import Sums, agreement_sums, bootstrap, groups_or_items
from raters.corpus_files import AnnotationTable
from raters.pairs import Pairs
from raters.reliability import alpha_sums, ceiling_sums, icc3, icc3_sums

Floats = NDArray[np.float64]
CUTS = np.array([-1.0, -0.3, 0.4, 1.2])
"""Where a normal variate becomes one of five labels."""

CHECKED = ("krippendorff_alpha", "kendall_tau_b", "icc3_1", "mse")


@pytest.fixture(autouse=True)
def _no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def columns(seed: int, items: int) -> tuple[Floats, Floats, Floats]:
    """Return labels, verdicts of one rater, and of another that is worse; some missing."""
    chance = np.random.default_rng(seed)
    common = chance.normal(size=items)
    found = [np.digitize(common + chance.normal(scale=scale, size=items), CUTS).astype(float) for scale in (1, 1, 2)]
    for each in found:
        each[chance.random(items) < 0.1] = np.nan
    return found[0], found[1], found[2]


def drawn_groups(monkeypatch: pytest.MonkeyPatch) -> list[Floats]:
    """Return a list that fills with the weights that `bootstrap` draws."""
    seen: list[Floats] = []
    weights = raters.bootstrap._weights

    def recorded(*arguments: object) -> Iterator[Floats]:
        for block in weights(*arguments):  # type: ignore[arg-type]
            seen.append(block)
            yield block

    monkeypatch.setattr(raters.bootstrap, "_weights", recorded)
    return seen


def test_resamples_are_those_of_a_loop_over_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every group has sums of its own here, so a drawn weight is how often that group was drawn."""
    labels, good, bad = columns(0, 90)
    groups = np.repeat(np.arange(15), 6)
    values = np.array([0.0, 1.0, 2.0, 5.0, 9.0])
    chance = np.random.default_rng(1)
    ratings = np.array([labels, *(np.clip(labels + chance.integers(-1, 2, 90), 0, 4) for _ in range(3))])
    annotators, items = np.nonzero(np.isfinite(ratings))
    table = AnnotationTable(items, annotators, ratings[annotators, items])
    seen = drawn_groups(monkeypatch)
    found = bootstrap(
        {
            "good": agreement_sums(labels, good, groups, "ordinal", values),
            "bad": agreement_sums(labels, bad, groups, "ordinal", values),
            "people": alpha_sums(table, groups, "ordinal"),
            "raters": icc3_sums(np.array([good, bad, labels]).T, groups),
        },
        resamples=30,
        seed=4,
    )
    times = np.concatenate(seen).astype(int)
    assert times.shape == (30, 15)
    assert (times.sum(axis=1) == 15).all()
    for place, row in enumerate(times):
        rows = np.repeat(np.arange(90), np.repeat(row, 6))
        for name, verdicts in (("good", good), ("bad", bad)):
            for figure, expected in agreement(labels[rows], verdicts[rows], "ordinal", values).items():
                assert found.draws[name, figure][place] == pytest.approx(expected.value, abs=1e-10)
            tau = scipy.stats.kendalltau(labels[rows], verdicts[rows], nan_policy="omit").statistic
            assert found.draws[name, "kendall_tau_b"][place] == pytest.approx(tau)
        alpha = krippendorff.alpha(ratings[:, rows], level_of_measurement="ordinal")
        assert found.draws["people", "krippendorff_alpha"][place] == pytest.approx(alpha)
        single, average = icc3(np.array([good, bad, labels]).T[rows])
        assert found.draws["raters", "icc3_1"][place] == pytest.approx(single.value)
        assert found.draws["raters", "icc3_k"][place] == pytest.approx(average.value)
    for left_out in range(15):
        rows = np.flatnonzero(groups != left_out)
        expected = agreement(labels[rows], good[rows], "ordinal", values)["kendall_tau_b"].value
        assert np.isclose(found.without_one["good", "kendall_tau_b"], expected).any()


def test_groups_of_one_kind_are_drawn_as_single_groups_are() -> None:
    """500 items of few kinds: the same distribution as resampling rows."""
    labels, good, _ = columns(2, 500)
    found = bootstrap({"rater": agreement_sums(labels, good, np.arange(500), "ordinal")}, resamples=4000)
    assert len(found.multiplicity) <= 26
    assert found.multiplicity.sum() == 500
    chance = np.random.default_rng(0)
    rows = [chance.integers(500, size=500) for _ in range(1000)]
    by_rows = [agreement(labels[row], good[row], "ordinal") for row in rows]
    for figure in METRICS_BY_SCALE["ordinal"]:
        expected = np.array([each[figure].value for each in by_rows])
        assert found.draws["rater", figure].mean() == pytest.approx(expected.mean(), abs=0.15 * expected.std()), figure
        assert found.draws["rater", figure].std() == pytest.approx(expected.std(), rel=0.1), figure


def test_kinds_tell_groups_apart_that_differ_for_one_rater_only() -> None:
    labels = np.zeros(40)
    verdicts = np.r_[np.zeros(39), 1.0]
    names = {"a": agreement_sums(labels, labels, np.arange(40), "nominal")}
    assert bootstrap(names, 10).multiplicity.tolist() == [40]
    names["b"] = agreement_sums(labels, verdicts, np.arange(40), "nominal")
    assert bootstrap(names, 10).multiplicity.tolist() == [39, 1]


def test_same_seed_same_resamples_whatever_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    labels, good, _ = columns(3, 300)
    for groups in (np.arange(300), np.repeat(np.arange(30), 10)):
        sums = {"rater": agreement_sums(labels, good, groups, "ordinal")}
        first = bootstrap(sums, 200, seed=1)
        with monkeypatch.context() as patch:
            patch.setattr(raters.bootstrap, "_BLOCK_NUMBERS", 400)
            again = bootstrap(sums, 200, seed=1)
        other = bootstrap(sums, 200, seed=2)
        for key, draws in first.draws.items():
            np.testing.assert_allclose(again.draws[key], draws, atol=1e-12)
            assert not np.allclose(other.draws[key], draws)


def test_leaving_out_blocks_of_groups_keeps_the_acceleration(monkeypatch: pytest.MonkeyPatch) -> None:
    """Averaged over many data sets: one block-wise acceleration is a noisy estimate of that of single groups."""
    chance = np.random.default_rng(0)

    def acceleration(values: Floats) -> float:
        sums = Sums(
            np.arange(len(values)), np.zeros(len(values), np.int64), values, len(values), 1,
            lambda totals: {"mean": totals[:, 0]}, lambda name, totals: "",
        )  # fmt: skip
        found = bootstrap({"data": sums}, 1)
        away = found.without_one["data", "mean"]
        below = (found.multiplicity @ away) / found.multiplicity.sum() - away
        times = found.multiplicity
        return float(times @ below**3 / (6 * (times @ below**2) ** 1.5))

    data = [chance.exponential(size=2000) for _ in range(40)]
    single = np.mean([acceleration(each) for each in data])
    monkeypatch.setattr(raters.bootstrap, "_MOST_JACKKNIFE_NUMBERS", 1)
    blocks = np.mean([acceleration(each) for each in data])
    assert single == pytest.approx(2 / 6 / np.sqrt(2000), rel=0.1)
    assert blocks == pytest.approx(single, rel=0.3)


def test_interval_scale_with_many_values(monkeypatch: pytest.MonkeyPatch) -> None:
    chance = np.random.default_rng(0)
    labels = chance.normal(size=300)
    verdicts = labels + chance.normal(size=300)
    seen = drawn_groups(monkeypatch)
    found = bootstrap({"rater": agreement_sums(labels, verdicts, np.arange(300), "interval")}, 50)
    for place, row in enumerate(np.concatenate(seen).astype(int)):
        rows = np.repeat(np.arange(300), row)
        for figure, expected in agreement(labels[rows], verdicts[rows], "interval").items():
            assert found.draws["rater", figure][place] == pytest.approx(expected.value, abs=1e-10)
    assert found.interval("rater", "exact_agreement").reason == "the same in all resamples"


def test_differences_are_paired() -> None:
    labels, good, bad = columns(5, 300)
    both = np.isfinite(good) & np.isfinite(bad)
    good, bad = np.where(both, good, np.nan), np.where(both, bad, np.nan)
    groups = np.repeat(np.arange(30), 10)
    found = bootstrap(
        {name: agreement_sums(labels, verdicts, groups, "ordinal") for name, verdicts in (("g", good), ("b", bad))}
    )
    for figure in METRICS_BY_SCALE["ordinal"]:
        difference = found.difference("g", "b", figure)
        expected = agreement(labels, good, "ordinal")[figure].value - agreement(labels, bad, "ordinal")[figure].value
        assert difference.value == pytest.approx(expected)
        assert difference.low < difference.value < difference.high
        back = found.difference("b", "g", figure)
        assert (back.low, back.high, back.p) == pytest.approx((-difference.high, -difference.low, difference.p))
        assert found.difference("g", "g", figure).p == 1
    assert found.difference("g", "b", "kendall_tau_b").p < 0.05


def test_undefined_figures_have_reasons() -> None:
    constant = bootstrap({"r": agreement_sums(np.ones(30), np.arange(30) % 2.0, np.arange(30), "ordinal")}, 100)
    found = constant.interval("r", "kendall_tau_b")
    assert np.isnan([found.value, found.low, found.high]).all()
    assert found.reason == "labels are constant"
    assert constant.difference("r", "r", "kendall_tau_b").reason == "r: labels are constant"
    assert np.isfinite(constant.interval("r", "mse").low)
    nearly = np.r_[np.ones(29), 0.0]
    found = bootstrap({"r": agreement_sums(nearly, nearly, np.arange(30), "ordinal")}, 500).interval("r", "icc3_1")
    assert found.value == 1
    assert found.reason.startswith("undefined in 3")
    assert found.undefined_resamples == pytest.approx((29 / 30) ** 30, abs=0.08)


@pytest.mark.parametrize("items", [0, 1])
def test_no_items_or_one(items: int) -> None:
    column, groups = np.ones(items), np.arange(items)
    none = AnnotationTable(groups[:0], groups[:0], column[:0])
    found = bootstrap(
        {
            "rater": agreement_sums(column, column, groups, "ordinal"),
            "people": alpha_sums(none, groups, "ordinal"),
            "ceiling": ceiling_sums(none, groups, "ordinal", lambda numbers: float(numbers[0]), pooled=False),
            "raters": icc3_sums(np.ones((items, 2)), groups),
        },
        50,
    )
    for name, figure in found.points:
        interval = found.interval(name, figure)
        assert interval.reason
        assert np.isnan(interval.low)


def test_scoring_imports_neither_torch_nor_scipy_before_it_needs_to() -> None:
    modules = "raters.agreement, raters.bootstrap, raters.reliability, raters.annotator_test"
    script = f"import sys, {modules}; print([name for name in ('torch', 'scipy', 'matplotlib') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_groups_are_drawn_if_they_are_twenty() -> None:
    codes, grouped = groups_or_items(np.repeat(np.arange(20) * 7, 2))
    assert grouped
    assert codes.tolist() == np.repeat(np.arange(20), 2).tolist()
    codes, grouped = groups_or_items(np.repeat(np.arange(19), 2))
    assert not grouped
    assert codes.tolist() == list(range(38))


CORRELATION = 0.6


def true_figures() -> dict[str, float]:
    """Return the figures of a bivariate normal of correlation 0.6 cut into five labels, from exact probabilities."""
    edges = np.r_[-9.0, CUTS, 9.0]
    normal = scipy.stats.multivariate_normal([0, 0], [[1, CORRELATION], [CORRELATION, 1]])
    below = np.array([[normal.cdf([x, y]) for y in edges] for x in edges])
    cells = np.diff(np.diff(below, axis=0), axis=1).ravel()
    assert cells.sum() == pytest.approx(1, abs=1e-6)
    numbers = np.arange(5.0)
    labels, verdicts = np.repeat(np.arange(5), 5), np.tile(np.arange(5), 5)
    pairs = Pairs(numbers, numbers, labels, verdicts, cells * 1e9)
    return {name: float(found[0]) for name, found in figures_of(pairs.counts[None], pairs, "ordinal").items()}


def simulated(chance: np.random.Generator, groups: int, size: int, within: float, mixing: Floats) -> list[Floats]:
    """Return columns of labels of groups whose items correlate by `within`, columns by mixing @ mixing.T."""
    shared = (chance.normal(size=(groups, mixing.shape[1])) @ mixing.T).repeat(size, axis=0)
    own = chance.normal(size=(groups * size, mixing.shape[1])) @ mixing.T
    return list(np.digitize(np.sqrt(within) * shared + np.sqrt(1 - within) * own, CUTS).T.astype(float))


DESIGNS = [(200, 1, 0.0), (100, 3, 0.3), (40, 8, 0.3)]
"""Groups, items in each, and how much items of a group are alike."""
FEW_GROUPS = (20, 8, 0.3)
CORPORA = 1000
SEED = 1
SLOW = pytest.mark.slow
"""1,000 corpora of 500 resamples take about 15 seconds each on a quiet core."""


@SLOW
@pytest.mark.parametrize(("groups", "size", "within"), [*DESIGNS, FEW_GROUPS])
def test_intervals_cover_the_truth(groups: int, size: int, within: float) -> None:
    """95 % intervals hold the truth in 93 to 97 % of 1,000 corpora.

    A share of 95 % of 1,000 has a standard error of 0.7 %, so with another seed now and then a figure falls out: of
    seeds 1, 2, 3 one figure or a few did in 2 of 12 runs, all with 40 groups. Over 6,000 corpora of 40 groups the
    shares were 95.0 % (alpha), 95.1 % (tau-b), 94.4 % (ICC) and 94.4 % (MSE).
    """
    truth = true_figures()
    mixing = np.column_stack([np.full(3, np.sqrt(CORRELATION)), np.sqrt(1 - CORRELATION) * np.eye(3)])
    chance = np.random.default_rng(SEED)
    items = groups * size
    held = dict.fromkeys([*truth, "alpha of three people"], 0)
    for corpus in range(CORPORA):
        people = simulated(chance, groups, size, within, mixing)
        table = AnnotationTable(np.tile(np.arange(items), 3), np.repeat(np.arange(3), items), np.concatenate(people))
        codes = np.repeat(np.arange(groups), size)
        sums = {
            "rater": agreement_sums(people[0], people[1], codes, "ordinal"),
            "people": alpha_sums(table, codes, "ordinal"),
        }
        found = bootstrap(sums, 500, seed=corpus)
        for figure in truth:
            interval = found.interval("rater", figure)
            held[figure] += interval.low <= truth[figure] <= interval.high
        # Every two of the people agree as label and verdict do.
        interval = found.interval("people", "krippendorff_alpha")
        held["alpha of three people"] += interval.low <= truth["krippendorff_alpha"] <= interval.high
    shares = {figure: count / CORPORA for figure, count in held.items()}
    print(f"{groups} groups of {size}:", shares)
    for figure in (*CHECKED, "alpha of three people"):
        assert 0.93 <= shares[figure] <= 0.97, figure


@SLOW
@pytest.mark.parametrize(("groups", "size", "within"), [*DESIGNS, FEW_GROUPS])
def test_false_positives_of_the_paired_test(groups: int, size: int, within: float) -> None:
    """Two raters of the same quality differ at the 5 % level in at most 6 % of 1,000 corpora."""
    mixing = np.column_stack([np.full(3, np.sqrt(CORRELATION)), np.sqrt(1 - CORRELATION) * np.eye(3)])
    chance = np.random.default_rng(SEED)
    rejected = dict.fromkeys(CHECKED, 0)
    for corpus in range(CORPORA):
        labels, first, second = simulated(chance, groups, size, within, mixing)
        codes = np.repeat(np.arange(groups), size)
        sums = {
            "first": agreement_sums(labels, first, codes, "ordinal"),
            "second": agreement_sums(labels, second, codes, "ordinal"),
        }
        found = bootstrap(sums, 500, seed=corpus)
        for figure in CHECKED:
            rejected[figure] += found.difference("first", "second", figure).p <= 0.05
    shares = {figure: count / CORPORA for figure, count in rejected.items()}
    print(f"{groups} groups of {size}:", shares)
    assert max(shares.values()) <= 0.06
