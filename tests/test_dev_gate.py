"""The gate's figures against scipy and scikit-learn, and what it keeps and does not keep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import kendalltau
from sklearn.metrics import cohen_kappa_score

from raters.dev_gate import Decision, DevLabels, choice_figure, decide, quantities, said
from raters.gold import default_method
from raters.rater_draws import RaterDraws
from raters.scales import SCALE_ADAPTER, AnyScale
from tests.small_corpora import INTERVAL, NOMINAL, ORDINAL_5, PAIRWISE

Floats = NDArray[np.float64]
THREE = {"type": "nominal", "labels": ["red", "green", "blue"]}
UNEVEN = {"type": "ordinal", "labels": [0, 1, 4]}
NAN = float("nan")


def scale_of(settings: dict[str, Any]) -> AnyScale:
    return SCALE_ADAPTER.validate_python(settings)


def rater(numbers: Sequence[Sequence[float]] | Floats, scale: AnyScale, name: str = "rater") -> RaterDraws:
    """Return a rater's draws: a row an item, a column a draw, as the scale's numbers."""
    drawn = np.array(numbers, float)
    method: Any = default_method(scale)
    items = np.arange(len(drawn))
    return RaterDraws(name, items, drawn, np.full(len(drawn), drawn.shape[1]), np.zeros(drawn.shape, bool), method)


def labels_of(numbers: Sequence[float] | Floats, scale: AnyScale, groups: Sequence[int] | None = None) -> DevLabels:
    gold = quantities(np.array(numbers, float), scale)
    codes = np.arange(len(gold)) if groups is None else np.array(groups)
    return DevLabels(scale, gold, codes, groups is not None)


def figure_of(numbers: Sequence[float], draws: Sequence[Sequence[float]], settings: dict[str, Any]) -> float:
    scale = scale_of(settings)
    labels = labels_of(numbers, scale)
    return labels.sums(rater(draws, scale)).points()[choice_figure(scale)].value


# --- figures ----------------------------------------------------------------------------------------------


def test_quantities_of_each_scale() -> None:
    numbers = np.array([[0.0, 1.0], [2.0, NAN]])
    assert quantities(numbers, scale_of(ORDINAL_5)).tolist()[0] == [1, 2]
    assert quantities(numbers, scale_of(UNEVEN))[1, 0] == 4
    assert quantities(numbers, scale_of(PAIRWISE)).tolist()[0] == [1, -1]
    assert quantities(numbers, scale_of(PAIRWISE))[1, 0] == 0
    assert quantities(numbers, scale_of(THREE)).tolist()[0] == [0, 1]
    assert quantities(np.array([0.0, 1.0]), scale_of(NOMINAL)).tolist() == [1, 0]
    assert quantities(np.array([37.5]), scale_of(INTERVAL)).tolist() == [37.5]
    for settings in (ORDINAL_5, PAIRWISE, THREE, INTERVAL):
        assert np.isnan(quantities(numbers, scale_of(settings))[1, 1])


def test_draws_of_an_item_say_their_mean() -> None:
    scale = scale_of(ORDINAL_5)
    found = said(rater([[0, 4], [1, NAN], [NAN, NAN]], scale), scale)
    assert found[:2].tolist() == [3, 2]
    assert np.isnan(found[2])
    pair = scale_of(PAIRWISE)
    assert said(rater([[0, 1, 0, 2]], pair), pair).tolist() == [0.25]  # (1 - 1 + 1 + 0) / 4


@pytest.mark.parametrize(
    ("settings", "labels", "figure"),
    [(ORDINAL_5, 5, "kendall_tau_b"), (PAIRWISE, 3, "kendall_tau_b"), (NOMINAL, 2, "kendall_tau_b"),
     (UNEVEN, 3, "kendall_tau_b"), (THREE, 3, "cohen_kappa")],
)  # fmt: skip
@pytest.mark.parametrize("seed", range(5))
def test_figures_are_those_of_scipy_and_scikit_learn(
    settings: dict[str, Any], labels: int, figure: str, seed: int
) -> None:
    chance = np.random.default_rng(seed)
    numbers = chance.integers(labels, size=60).astype(float)
    draws = np.where(chance.random((60, 3)) < 0.4, numbers[:, None], chance.integers(labels, size=(60, 3)))
    scale = scale_of(settings)
    assert choice_figure(scale) == figure
    if figure == "cohen_kappa":
        # The most frequent of three draws; of three different ones the first.
        verdicts = [max(row.tolist(), key=lambda one: (row.tolist().count(one), -row.tolist().index(one)))
                    for row in draws]  # fmt: skip
        expected = cohen_kappa_score(numbers, verdicts)
    else:
        value: Any = {"pairwise": [1, -1, 0], "nominal": [1, 0]}.get(settings["type"], settings["labels"])
        worth = np.array(value, float)
        expected = kendalltau(worth[numbers.astype(int)], worth[draws.astype(int)].mean(axis=1)).statistic
    assert figure_of(numbers.tolist(), draws.tolist(), settings) == pytest.approx(expected, abs=1e-12)


def test_interval_figures_are_those_of_scipy() -> None:
    chance = np.random.default_rng(3)
    numbers = chance.uniform(0, 100, 50)
    draws = np.clip(numbers[:, None] + chance.normal(0, 30, (50, 4)), 0, 100)
    expected = kendalltau(numbers, draws.mean(axis=1)).statistic
    assert figure_of(numbers.tolist(), draws.tolist(), INTERVAL) == pytest.approx(expected, abs=1e-12)


def test_a_rater_that_says_one_and_the_same_agrees_in_nothing() -> None:
    assert figure_of([0, 1, 2, 3, 4], [[2]] * 5, ORDINAL_5) == 0
    assert figure_of([0, 0, 0], [[1], [2], [3]], ORDINAL_5) == 0  # nor can anybody agree with a constant
    assert figure_of([0, 1, 2], [[1]] * 3, THREE) == 0


# --- what cannot be read ----------------------------------------------------------------------------------


def test_unreadable_counts_as_the_farthest_label() -> None:
    """Of labels 1 to 5 the farthest from 1 and 2 is 5, from 4 and 5 it is 1; from 3 both are, and it is 1."""
    numbers = [0.0, 1.0, 2.0, 3.0, 4.0, 4.0]
    blank = [[NAN], [NAN], [NAN], [NAN], [NAN], [3.0]]
    expected = kendalltau([1, 2, 3, 4, 5, 5], [5, 5, 1, 1, 1, 4]).statistic
    assert figure_of(numbers, blank, ORDINAL_5) == pytest.approx(expected)


def test_one_readable_draw_is_enough() -> None:
    assert figure_of([0, 1, 2], [[NAN, 0], [1, NAN], [2, 2]], ORDINAL_5) == pytest.approx(1)


def test_making_hard_items_unreadable_is_no_gain() -> None:
    """Left out, the items that the rater gets wrong would raise its agreement to 1."""
    scale = scale_of(ORDINAL_5)
    chance = np.random.default_rng(0)
    numbers = chance.integers(5, size=60).astype(float)
    wrong = np.arange(60) % 3 == 0
    before = np.where(wrong, 2.0, numbers)
    after = np.where(wrong, NAN, numbers)
    found = decide(labels_of(numbers, scale), [rater(before[:, None], scale)], [rater(after[:, None], scale)], 0.05)
    assert not found.kept
    assert found.mean.gain < 0


# --- the decision -----------------------------------------------------------------------------------------


def gate(
    numbers: Floats,
    before: Sequence[Floats],
    after: Sequence[Floats],
    level: float = 0.05,
    seed: int = 0,
    resamples: int = 400,
) -> Decision:
    scale = scale_of(ORDINAL_5)
    old = [rater(one, scale, f"rater {place}") for place, one in enumerate(before)]
    new = [rater(one, scale, f"rater {place}") for place, one in enumerate(after)]
    return decide(labels_of(numbers, scale), old, new, level, resamples=resamples, seed=seed)


def noisy(numbers: Floats, share: float, chance: np.random.Generator, draws: int = 4) -> Floats:
    """Return draws of which a share is the label and the rest is chance."""
    shape = (len(numbers), draws)
    return np.where(chance.random(shape) < share, numbers[:, None], chance.integers(5, size=shape)).astype(float)


def test_a_large_gain_is_kept_and_its_figures_are_told() -> None:
    chance = np.random.default_rng(0)
    numbers = chance.integers(5, size=60).astype(float)
    before, after = noisy(numbers, 0.1, chance), noisy(numbers, 0.8, chance)
    found = gate(numbers, [before], [after])
    assert found.kept
    assert found.reason == ""
    for value, draws in ((found.mean.before, before), (found.mean.after, after)):
        assert value == pytest.approx(kendalltau(numbers, draws.mean(axis=1)).statistic)
    assert found.mean.low < found.mean.gain < found.mean.high
    assert found.mean.low > 0
    assert 0 < found.mean.p < 0.05
    assert found.raters == (found.mean,)
    # The other way round it is a sure loss.
    lost = gate(numbers, [after], [before])
    assert not lost.kept
    assert lost.mean.p > 0.95
    assert lost.reason.startswith("agreement does not rise (0.")


def test_no_change_at_all_is_not_kept() -> None:
    chance = np.random.default_rng(1)
    numbers = chance.integers(5, size=40).astype(float)
    draws = noisy(numbers, 0.5, chance)
    found = gate(numbers, [draws], [draws])
    assert not found.kept
    assert (found.mean.gain, found.mean.low, found.mean.high) == (0, 0, 0)


def test_a_small_gain_may_be_chance() -> None:
    chance = np.random.default_rng(2)
    numbers = chance.integers(5, size=40).astype(float)
    before = noisy(numbers, 0.5, chance, 1)
    after = before.copy()
    wrong = np.flatnonzero(before[:, 0] != numbers)[0]
    after[wrong] = numbers[wrong]  # one item of forty is mended
    found = gate(numbers, [before], [after])
    assert found.mean.gain > 0
    assert not found.kept
    assert "may be chance (p 0." in found.reason


def test_level_decides() -> None:
    chance = np.random.default_rng(0)
    numbers = chance.integers(5, size=50).astype(float)
    before, after = noisy(numbers, 0.4, chance), noisy(numbers, 0.6, chance)
    p = gate(numbers, [before], [after]).mean.p
    assert gate(numbers, [before], [after], p + 1e-6).kept
    assert not gate(numbers, [before], [after], p - 1e-6).kept


def test_several_raters_mean_that_their_mean_rises_and_none_falls() -> None:
    chance = np.random.default_rng(5)
    numbers = chance.integers(5, size=80).astype(float)
    poor, good = noisy(numbers, 0.1, chance), noisy(numbers, 0.9, chance)
    fair, same = noisy(numbers, 0.5, chance), noisy(numbers, 0.5, chance)

    both = gate(numbers, [poor, fair], [good, same])
    assert both.kept
    assert both.mean.before == pytest.approx((both.raters[0].before + both.raters[1].before) / 2)
    assert both.mean.after == pytest.approx((both.raters[0].after + both.raters[1].after) / 2)

    hurt = gate(numbers, [poor, fair], [good, noisy(numbers, 0.25, chance)])
    assert hurt.mean.gain > 0.05
    assert hurt.mean.p < 0.05
    assert not hurt.kept
    assert hurt.reason.startswith("rater 1 falls from 0.")

    no_gain = gate(numbers, [poor, good], [good, poor])
    assert not no_gain.kept


def test_groups_are_resampled_together() -> None:
    """Ten items alike are one observation: 20 such groups tell less than 200 items."""
    chance = np.random.default_rng(4)
    numbers, scale = chance.integers(5, size=20).astype(float), scale_of(ORDINAL_5)
    before, after = noisy(numbers, 0.3, chance, 2), noisy(numbers, 0.5, chance, 2)
    many = [np.repeat(each, 10, axis=0) for each in (numbers, before, after)]
    raters = [rater(many[1], scale)], [rater(many[2], scale)]
    by_item = decide(labels_of(many[0], scale), *raters, 0.05)
    by_group = decide(labels_of(many[0], scale, np.repeat(np.arange(20), 10).tolist()), *raters, 0.05)
    assert by_group.mean.gain == by_item.mean.gain
    assert by_group.mean.high - by_group.mean.low > 2 * (by_item.mean.high - by_item.mean.low)


def test_same_seed_same_decision() -> None:
    chance = np.random.default_rng(6)
    numbers = chance.integers(5, size=40).astype(float)
    before, after = noisy(numbers, 0.3, chance), noisy(numbers, 0.5, chance)
    assert gate(numbers, [before], [after]) == gate(numbers, [before], [after])
    assert gate(numbers, [before], [after]).mean.p != gate(numbers, [before], [after], seed=1).mean.p


@pytest.mark.parametrize(("items", "raters"), [(24, 1), (56, 1), (40, 2)], ids=["24 items", "56 items", "two raters"])
def test_a_change_that_changes_nothing_is_kept_as_seldom_as_the_level_says(items: int, raters: int) -> None:
    """Before and after are draws of the same rater: 10 of 200 such cases are 5 %, 14 are 7 %."""
    chance = np.random.default_rng(items)
    cases, kept = 200, 0
    for case in range(cases):
        numbers = chance.integers(5, size=items).astype(float)
        before = [noisy(numbers, 0.4, chance) for _ in range(raters)]
        after = [noisy(numbers, 0.4, chance) for _ in range(raters)]
        kept += gate(numbers, before, after, seed=case, resamples=200).kept
    assert kept / cases <= 0.07


def test_a_plain_gain_is_found_in_most_cases() -> None:
    """The gate is no wall: from 2 of 10 draws right to 6 of 10, with 56 items."""
    chance = np.random.default_rng(8)
    kept = 0
    for case in range(40):
        numbers = chance.integers(5, size=56).astype(float)
        kept += gate(numbers, [noisy(numbers, 0.2, chance)], [noisy(numbers, 0.6, chance)], seed=case).kept
    assert kept >= 36
