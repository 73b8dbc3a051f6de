"""Scores of raters on small corpora: every figure against an independent library, nothing unreadable lost."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import krippendorff
import numpy as np
import pandas as pd
import pingouin
import pytest
from scipy.stats import kendalltau, spearmanr
from sklearn.metrics import cohen_kappa_score, mean_absolute_error, mean_squared_error

from raters.agreement import ALPHA_LEVELS, METRICS_BY_SCALE
from raters.corpora import Corpus
from raters.intervals import holm
from raters.records import ConfigError, DataError
from raters.scoring import people_of, score
from tests.scored_corpora import ITEMS, NAN, corpus_of, random_numbers, rater
from tests.small_corpora import DIMENSION, INTERVAL, NOMINAL, ORDINAL_5, PAIRWISE, small_corpus


def figures(scores: dict[str, Any], place: int = 0, which: str = "agreement") -> dict[str, Any]:
    return {name: found["value"] for name, found in scores["raters"][place][which].items()}


def alpha(labels: Any, verdicts: Any, level: str) -> float:
    return float(krippendorff.alpha(np.array([labels, verdicts], float), level_of_measurement=level))


def test_unreadable_verdicts_count_in_coverage_and_in_the_worst_case(tmp_path: Path) -> None:
    """The rater says the gold label but for one item in six, where nothing can be read."""
    corpus = corpus_of(tmp_path, ORDINAL_5, [1, 2, 3, 4, 5])
    gold = people_of(corpus, corpus.dimension(None), "median", np.arange(ITEMS)).gold
    numbers = np.where(np.arange(ITEMS) % 6 == 0, NAN, gold)[:, None]
    scores = score(corpus, corpus.dimension(None), "median", [rater("r", numbers)], resamples=200)
    record = scores["raters"][0]
    assert (record["coverage"], record["unreadable_items"], record["unreadable_draws"]) == (50 / 60, 10, 10)
    assert (figures(scores)["exact_agreement"], figures(scores, 0, "worst_case")["exact_agreement"]) == (1.0, 50 / 60)
    lost = gold[::6]
    farthest = np.maximum(lost, 4 - lost)  # numbers 0 to 4: the other end of the scale
    assert figures(scores, 0, "worst_case")["mse"] == pytest.approx((farthest**2).sum() / 60)


def test_differences_are_paired_and_corrected(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, ORDINAL_5, [1, 2, 3, 4, 5])
    gold = people_of(corpus, corpus.dimension(None), "median", np.arange(ITEMS)).gold[:, None]
    raters = [rater("good", gold), rater("same", gold), rater("random", random_numbers(7, 5))]
    found = score(corpus, corpus.dimension(None), "median", raters, resamples=500)["differences"]
    tau = {tuple(row["raters"]): row for row in found if row["figure"] == "kendall_tau_b"}
    assert (tau["good", "same"]["value"], tau["good", "same"]["p"]) == (0.0, 1.0)
    assert tau["good", "random"]["value"] > 0.5
    assert tau["good", "random"]["p_holm"] < 0.05
    assert all(row["p_holm"] >= row["p"] for row in tau.values())


def test_different_items_are_refused(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, ORDINAL_5, [1, 2, 3, 4, 5])
    raters = [rater("one", random_numbers(0, 5)), rater("other", random_numbers(0, 5)[:-1])]
    with pytest.raises(DataError, match=r"other and one rated different items \(1 are in one alone, such as 'i59'\)"):
        score(corpus, corpus.dimension(None), "median", raters, resamples=200)


# --- every figure, for one draw and for several -----------------------------------------------------------

UNEVEN = {"type": "ordinal", "labels": [0, 1, 10]}
STEPS = {"type": "ordinal", "labels": [0, 1, 2, 10]}
"""From 2 the farthest quantity is one step off, and the farthest step is two units off."""
WORDS = {"type": "ordinal", "labels": ["poor", "fair", "good"]}
COARSE = [0, 20, 45, 70, 100]


def icc_of(table: Any) -> Any:
    """Return the ICCs of (items, raters) values by type."""
    rows, raters = np.indices(table.shape)
    long = pd.DataFrame({"item": rows.ravel(), "by": raters.ravel(), "value": table.ravel()})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pingouin.intraclass_corr(long, "item", "by", "value").set_index("Type")["ICC"]


def references(gold: Any, verdicts: Any, scale_type: str, quantities: Any, means: Any) -> dict[str, float]:
    """Return every figure as the libraries have it; what a mean is not rounded for is of `means`."""
    known = np.isfinite(gold) & np.isfinite(verdicts)
    x, y, mean = gold[known], verdicts[known], means[known]
    value = x if quantities is None else np.array(quantities, float)[x.astype(int)]
    found = {"exact_agreement": np.mean(x == y), "krippendorff_alpha": alpha(x, y, ALPHA_LEVELS[scale_type])}  # type: ignore[index]
    if scale_type in ("ordinal", "interval"):
        icc = icc_of(np.column_stack([value, mean]))
        found |= {
            "kendall_tau_b": kendalltau(value, mean).statistic,
            "spearman_rho": spearmanr(value, mean).statistic,
            "icc3_1": icc["ICC(C,1)"],
            "icc3_k": icc["ICC(C,k)"],
            "mse": mean_squared_error(value, mean),
            "mae": mean_absolute_error(value, mean),
        }
    if scale_type != "interval":
        found["cohen_kappa"] = cohen_kappa_score(x, y)
    if scale_type == "ordinal":
        every = list(range(len(quantities)))
        found["within_one_step"] = np.mean(abs(x - y) <= 1)
        found["quadratic_kappa"] = cohen_kappa_score(x, y, labels=every, weights="quadratic")
    return {name: float(figure) for name, figure in found.items()}


@pytest.mark.parametrize("draws", [1, 3, 4])
@pytest.mark.parametrize(
    ("scale", "labels", "method", "aggregate", "quantities"),
    [
        (ORDINAL_5, [1, 2, 3, 4, 5], "median", "mean", [1, 2, 3, 4, 5]),
        (UNEVEN, [0, 1, 10], "median", "mean", [0, 1, 10]),
        (WORDS, ["poor", "fair", "good"], "majority", "mean", [0, 1, 2]),
        (INTERVAL, COARSE, "mean", "mean", None),
        (NOMINAL, ["present", "not_present"], "majority", "majority", None),
        (PAIRWISE, ["A", "B", "tie"], "majority", "majority", None),
    ],
)
def test_every_figure_is_that_of_the_libraries(
    tmp_path: Path,
    scale: dict[str, Any],
    labels: list[Any],
    method: Any,
    aggregate: Any,
    quantities: list[float] | None,
    draws: int,
) -> None:
    """A tenth of the draws cannot be read."""
    corpus = corpus_of(tmp_path, scale, labels)
    numbers = random_numbers(11, len(labels), draws)
    if scale is INTERVAL:
        numbers = np.array(COARSE, float)[numbers.astype(int)]
    numbers[np.random.default_rng(2).random(numbers.shape) < 0.1] = NAN
    one = rater("r", numbers, aggregate)
    kind = corpus.dimension(None).scale
    scores = score(corpus, corpus.dimension(None), method, [one], resamples=200)
    gold = people_of(corpus, corpus.dimension(None), method, np.arange(ITEMS)).gold
    if aggregate == "mean":
        values = numbers if quantities is None else np.array(quantities, float)[np.nan_to_num(numbers).astype(int)]
        values = np.where(np.isfinite(numbers), values, NAN)
        means = np.array([row[np.isfinite(row)].mean() if np.isfinite(row).any() else NAN for row in values])
    else:
        means = one.verdicts(kind)
    expected = references(gold, one.verdicts(kind), kind.type, quantities, means)
    assert expected.keys() == set(METRICS_BY_SCALE[kind.type])
    assert figures(scores) == pytest.approx(expected, abs=1e-9)
    for name, figure in scores["raters"][0]["agreement"].items():
        assert figure["reason"] if figure["low"] is None else figure["low"] <= figure["value"] <= figure["high"], name


# --- people -----------------------------------------------------------------------------------------------


def test_people_of_some_items(tmp_path: Path) -> None:
    """Items 1 (no majority), 3 (nobody) and 4 are wanted of five."""
    given = {
        "i0": {"ann": "A"},
        "i1": {"ann": "A", "bob": "B"},
        "i2": {"ann": "A"},
        "i3": {},
        "i4": {"ann": "tie", "bob": "tie"},
    }
    inputs = {name: {"left": "one", "right": "two"} for name in given}
    corpus = small_corpus(tmp_path, given, PAIRWISE, inputs=inputs)
    people = people_of(corpus, corpus.dimension(None), "majority", np.array([1, 3, 4]))
    assert np.array_equal(people.gold, [NAN, NAN, 2], equal_nan=True)
    assert dict(people.dropped) == {"no majority": 1, "no annotation": 1}
    assert sorted(people.table.items.tolist()) == [0, 0, 2, 2]
    assert not people.by_group
    assert people.groups.tolist() == [0, 1, 2]
    with pytest.raises(DataError, match="none of the 2 rated items has a label on quality; "):
        people_of(corpus, corpus.dimension(None), "majority", np.array([1, 3]))


def test_labels_that_stay_each_persons_own_are_refused(tmp_path: Path) -> None:
    """Several gold labels of an item would overwrite each other."""
    corpus = corpus_of(tmp_path, ORDINAL_5, [1, 2, 3, 4, 5])
    with pytest.raises(ConfigError, match=r"labels per-annotator: .*; give median, majority, mean or paper"):
        score(corpus, corpus.dimension(None), "per-annotator", [rater("r", random_numbers(0, 5))], resamples=200)


@pytest.mark.parametrize(("count", "drawn"), [(20, "groups"), (19, "items")])
def test_groups_are_resampled_if_there_are_twenty(tmp_path: Path, count: int, drawn: str) -> None:
    given = {f"i{number}": {"ann": 1 + number % 5} for number in range(40)}
    groups = {name: f"g{number % count}" for number, name in enumerate(given)}
    corpus = small_corpus(tmp_path, given, groups=groups)
    scores = score(corpus, corpus.dimension(None), "median", [rater("r", [[n % 5] for n in range(40)])], resamples=200)
    assert (scores["resampled"], scores["resampled_count"]) == (drawn, 20 if drawn == "groups" else 40)


# --- the worst case ---------------------------------------------------------------------------------------


def test_worst_case_by_hand(tmp_path: Path) -> None:
    """Labels 1, 2, 5; verdicts 1, unreadable, 4. The worst verdict beside 2 is 5."""
    given = {f"i{number}": {"ann": label} for number, label in enumerate([1, 2, 5])}
    corpus = small_corpus(tmp_path, given)
    record = _scored(corpus, [[0], [NAN], [3]])["raters"][0]
    assert record["coverage"] == pytest.approx(2 / 3)
    readable, worst = ({name: found["value"] for name, found in record[which].items()}
                       for which in ("agreement", "worst_case"))  # fmt: skip
    assert (readable["exact_agreement"], worst["exact_agreement"]) == (pytest.approx(1 / 2), pytest.approx(1 / 3))
    assert (readable["mse"], worst["mse"]) == (pytest.approx(1 / 2), pytest.approx((0 + 9 + 1) / 3))
    assert (readable["mae"], worst["mae"]) == (pytest.approx(1 / 2), pytest.approx((0 + 3 + 1) / 3))


@pytest.mark.parametrize("draws", [1, 3])
@pytest.mark.parametrize(
    ("scale", "labels"),
    [(ORDINAL_5, [1, 2, 3, 4, 5]), (UNEVEN, [0, 1, 10]), (STEPS, [0, 1, 2, 10]), (INTERVAL, [0, 20, 45, 70, 100])],
)
def test_nothing_that_the_unreadable_could_have_been_is_worse(
    tmp_path: Path, scale: dict[str, Any], labels: list[Any], draws: int
) -> None:
    corpus = corpus_of(tmp_path, scale, labels)
    numbers = random_numbers(4, len(labels), draws)
    if scale is INTERVAL:
        numbers = np.array(labels, float)[numbers.astype(int)]
    lost = np.arange(ITEMS) % 4 == 0
    worst = figures(_scored(corpus, np.where(lost[:, None], NAN, numbers)), 0, "worst_case")
    gold = people_of(corpus, corpus.dimension(None), "median", np.arange(ITEMS)).gold
    quantities = np.array(labels, float)
    said_by_gold = gold if scale is INTERVAL else quantities[gold.astype(int)]
    farthest = np.abs(said_by_gold[:, None] - quantities).argmax(axis=1)
    most_steps = np.where(gold * 2 >= len(labels) - 1, 0, len(labels) - 1)
    for place in (*range(len(labels)), farthest, most_steps):
        said = np.broadcast_to(quantities[place] if scale is INTERVAL else place, ITEMS)
        could_be = figures(_scored(corpus, np.where(lost[:, None], said[:, None], numbers)))
        assert worst["mse"] >= could_be["mse"] - 1e-9
        assert worst["mae"] >= could_be["mae"] - 1e-9
        for name in {"exact_agreement", "within_one_step"} & worst.keys():
            assert worst[name] <= could_be[name] + 1e-9


@pytest.mark.parametrize("draws", [1, 3])
def test_the_worst_case_of_what_can_all_be_read_is_the_agreement(tmp_path: Path, draws: int) -> None:
    corpus = corpus_of(tmp_path, ORDINAL_5, [1, 2, 3, 4, 5])
    scores = _scored(corpus, random_numbers(6, 5, draws))
    assert scores["raters"][0]["coverage"] == 1
    assert figures(scores, 0, "worst_case") == pytest.approx(figures(scores))


@pytest.mark.parametrize(("scale", "labels"), [(NOMINAL, ["present", "not_present"]), (PAIRWISE, ["A", "B", "tie"])])
def test_worst_case_without_order_is_another_label(tmp_path: Path, scale: dict[str, Any], labels: list[str]) -> None:
    corpus = corpus_of(tmp_path, scale, labels)
    gold = people_of(corpus, corpus.dimension(None), "majority", np.arange(ITEMS)).gold
    known = np.flatnonzero(np.isfinite(gold))
    numbers = np.nan_to_num(gold)
    numbers[known[:10]] = NAN
    one = rater("r", numbers[:, None], "majority")
    scores = score(corpus, corpus.dimension(None), "majority", [one], resamples=200)
    assert figures(scores)["exact_agreement"] == 1
    assert figures(scores, 0, "worst_case")["exact_agreement"] == pytest.approx(1 - 10 / len(known))


def _scored(corpus: Corpus, *numbers: Any, resamples: int = 200) -> dict[str, Any]:
    raters = [rater(f"r{place}", each) for place, each in enumerate(numbers)]
    return score(corpus, corpus.dimension(None), "median", raters, resamples=resamples)


# --- what stands beside the figures -----------------------------------------------------------------------


def test_self_agreement_by_hand(tmp_path: Path) -> None:
    """Pairs of draws: 1 of 3 the same, 1 of 1, and none of a lone draw."""
    corpus = small_corpus(tmp_path, {f"i{number}": {"ann": label} for number, label in enumerate([1, 2, 5])})
    scores = _scored(corpus, [[0, 0, 1], [2, NAN, 2], [NAN, 3, NAN]])
    record = scores["raters"][0]
    assert record["self_agreement"] == pytest.approx(2 / 4)
    assert (record["draws_per_item"], record["unreadable_draws"], record["unreadable_items"]) == (3, 3, 0)
    assert _scored(corpus, [[0], [1], [2]])["raters"][0]["self_agreement"] is None


def test_people_stand_beside_every_figure(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, ORDINAL_5, [1, 2, 3, 4, 5])
    human = _scored(corpus, random_numbers(0, 5))["human"]
    table = corpus.annotations(DIMENSION)
    ratings = np.full((3, ITEMS), NAN)
    ratings[table.annotators, table.items] = table.numbers
    expected = krippendorff.alpha(ratings, level_of_measurement="ordinal")
    assert human["alpha"]["value"] == pytest.approx(expected)
    assert human["alpha"]["low"] < expected < human["alpha"]["high"]
    assert set(human["ceiling"]) == set(METRICS_BY_SCALE["ordinal"])
    assert all(found["low"] < found["value"] < found["high"] for found in human["ceiling"].values())
    # The gold label of two others is their middle, of two as near the lower.
    exact = np.mean([
        ratings[who] == np.floor(np.delete(ratings, who, axis=0).mean(axis=0)) for who in range(3)
    ])  # fmt: skip
    assert human["ceiling"]["exact_agreement"]["value"] == pytest.approx(exact)


# --- raters beside each other -----------------------------------------------------------------------------


@pytest.mark.parametrize("draws", [(1, 1), (3, 3), (3, 1)])
def test_a_difference_is_that_of_the_figures_shown(tmp_path: Path, draws: tuple[int, int]) -> None:
    corpus = corpus_of(tmp_path, ORDINAL_5, [1, 2, 3, 4, 5])
    scores = _scored(corpus, random_numbers(1, 5, draws[0]), random_numbers(2, 5, draws[1]))
    shown = {row["figure"]: row["value"] for row in scores["differences"]}
    one, other = figures(scores, 0), figures(scores, 1)
    assert shown == pytest.approx({name: one[name] - other[name] for name in one})


@pytest.mark.parametrize("draws", [1, 4])
def test_a_difference_is_of_items_that_both_can_be_read_on(tmp_path: Path, draws: int) -> None:
    corpus = corpus_of(tmp_path, ORDINAL_5, [1, 2, 3, 4, 5])
    one, other = random_numbers(1, 5, draws), random_numbers(2, 5, draws)
    one[:10], other[5:20] = NAN, NAN
    shown = {row["figure"]: row["value"] for row in _scored(corpus, one, other)["differences"]}
    gold = people_of(corpus, corpus.dimension(None), "median", np.arange(ITEMS)).gold[20:]
    means = [each[20:].mean(axis=1) for each in (one, other)]
    errors = [np.mean((mean - gold) ** 2) for mean in means]
    assert shown["mse"] == pytest.approx(errors[0] - errors[1])
    exact = [np.mean(np.floor(mean + 0.5) == gold) for mean in means]  # the nearest label, the higher of two as near
    assert shown["exact_agreement"] == pytest.approx(exact[0] - exact[1])


def test_holm_is_over_the_pairs_of_raters_and_says_so(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, ORDINAL_5, [1, 2, 3, 4, 5])
    scores = _scored(corpus, *(random_numbers(seed, 5) for seed in range(4)))
    assert scores["holm_over"].startswith("6 pairs of raters, each figure by itself, on this dimension alone; ")
    for name in METRICS_BY_SCALE["ordinal"]:
        rows = [row for row in scores["differences"] if row["figure"] == name]
        assert len(rows) == 6
        assert [row["p_holm"] for row in rows] == holm([row["p"] for row in rows])
    assert _scored(corpus, random_numbers(0, 5))["holm_over"] is None


def test_differences_without_a_figure_say_why_in_words(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, ORDINAL_5, [1, 2, 3, 4, 5])
    scores = _scored(corpus, random_numbers(1, 5), np.full((ITEMS, 1), 2.0))
    (tau,) = [row for row in scores["differences"] if row["figure"] == "kendall_tau_b"]
    assert (tau["value"], tau["p"]) == (None, None)
    assert tau["reason"] == "r1: verdicts are constant"
    assert tau["p_holm"] is None


def test_raters_among_each_other(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, ORDINAL_5, [1, 2, 3, 4, 5])
    columns = [random_numbers(seed, 5) for seed in range(3)]
    found = _scored(corpus, *columns)["between_raters"]
    numbers = np.column_stack(columns)
    assert found["krippendorff_alpha"]["value"] == pytest.approx(
        krippendorff.alpha(numbers.T, level_of_measurement="ordinal")
    )
    icc = icc_of(numbers)
    assert found["icc3_1"]["value"] == pytest.approx(icc["ICC(C,1)"])
    assert found["icc3_k"]["value"] == pytest.approx(icc["ICC(C,k)"])
    assert [pair["raters"] for pair in found["pairs"]] == [["r0", "r1"], ["r0", "r2"], ["r1", "r2"]]
    assert found["pairs"][1]["cohen_kappa"]["value"] == pytest.approx(cohen_kappa_score(numbers[:, 0], numbers[:, 2]))


def test_the_same_seed_gives_the_same_scores(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, ORDINAL_5, [1, 2, 3, 4, 5])
    one, other = (_scored(corpus, random_numbers(1, 5), random_numbers(2, 5)) for _ in range(2))
    assert one == other


# --- degenerate input -------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [ORDINAL_5, WORDS, NOMINAL, PAIRWISE, INTERVAL])
@pytest.mark.parametrize("case", ["constant", "unreadable", "one item", "two items", "all the same", "one label"])
@pytest.mark.parametrize("people", [1, 2])
@pytest.mark.parametrize("count", [1, 2])
def test_degenerate_input(tmp_path: Path, scale: dict[str, Any], case: str, people: int, count: int) -> None:
    """Strict JSON, no warning, and a reason wherever there is no figure."""
    labels = scale.get("labels") or [0, 50, 100]
    items = {"one item": 1, "two items": 2}.get(case, 12)
    place = [0 if case == "all the same" else number % len(labels) for number in range(items)]
    given = {
        f"i{number}": {} if case == "one label" and number else {f"ann{who}": labels[place[number]]
        for who in range(people)} for number in range(items)
    }  # fmt: skip
    inputs = {name: {"left": "a b", "right": "c"} for name in given} if scale is PAIRWISE else None
    corpus = small_corpus(tmp_path, given, scale, inputs=inputs)
    said = np.full((items, 2), 0.0)
    if case == "unreadable":
        said[:] = NAN
    elif case == "one label":
        said[:, 0] = np.arange(items) % 2
    ordered = scale["type"] in ("ordinal", "interval")
    how: Any = "mean" if ordered else "majority"
    method: Any = {"ordinal": "median", "interval": "mean"}.get(scale["type"], "majority")
    raters = [rater(f"r{each}", said, how, np.tile([False, True], (items, 1))) for each in range(count)]
    with warnings.catch_warnings(), np.errstate(all="warn"):
        warnings.simplefilter("error")
        scores = score(corpus, corpus.dimension(None), method, raters, resamples=200)
    json.dumps(scores, allow_nan=False)
    blocks = [scores["human"]["ceiling"], {"alpha": scores["human"]["alpha"]}]
    blocks += [record[which] for record in scores["raters"] for which in ("agreement", "worst_case")]
    for block in blocks:
        for name, found in block.items():
            assert (found["value"] is None or found["low"] is None) <= bool(found["reason"]), (name, found)
    for row in scores["differences"]:
        assert (row["p"] is None) <= bool(row["reason"]), row
    for record in scores["raters"]:
        if case == "unreadable":
            assert record["coverage"] == 0
            assert all(found["value"] is None for found in record["agreement"].values())
        if ordered and (length := record["length_correlation"]):
            assert (length["spearman_rho"] is None) == bool(length["reason"])
