"""Scores of raters on small corpora: every figure against an independent library, nothing unreadable lost."""

from __future__ import annotations

import json
import random
import warnings
from pathlib import Path
from typing import Any

import krippendorff
import numpy as np
import pytest
from scipy.stats import kendalltau, spearmanr
from sklearn.metrics import cohen_kappa_score

from raters.corpora import Corpus
from raters.rater_draws import RaterDraws, read_draws
from raters.records import DataError
from raters.scoring import people_of, score
from tests.small_corpora import DIMENSION, INTERVAL, NOMINAL, ORDINAL_5, PAIRWISE, small_corpus, write_jsonl

ITEMS = 60
NAN = float("nan")


def corpus_of(folder: Path, scale: dict[str, Any], labels: list[Any], people: int = 3) -> Corpus:
    """Return 60 items in 30 groups, each labelled by some people who agree now and then."""
    chance = random.Random(1)
    given = {}
    for number in range(ITEMS):
        true = chance.randrange(len(labels))
        given[f"i{number:02}"] = {
            f"ann{who}": labels[true if chance.random() < 0.6 else chance.randrange(len(labels))]
            for who in range(people)
        }
    inputs = None
    if scale["type"] == "pairwise":
        inputs = {
            name: {"left": f"{name} " + "word " * chance.randrange(1, 30), "right": "some words"} for name in given
        }
    groups = {name: f"g{number // 2}" for number, name in enumerate(given)}
    return small_corpus(folder, given, scale, inputs=inputs, groups=groups)


def rater(name: str, numbers: Any, aggregate: Any = "mean", swapped: Any = None) -> RaterDraws:
    numbers = np.array(numbers, float)
    exchanged = np.zeros(numbers.shape, bool) if swapped is None else np.array(swapped)
    drawn = np.full(len(numbers), numbers.shape[1])
    return RaterDraws(name, np.arange(len(numbers)), numbers, drawn, exchanged, aggregate)


def random_numbers(seed: int, labels: int, draws: int = 1) -> Any:
    return np.random.default_rng(seed).integers(0, labels, (ITEMS, draws)).astype(float)


def figures(scores: dict[str, Any], place: int = 0, which: str = "agreement") -> dict[str, Any]:
    return {name: found["value"] for name, found in scores["raters"][place][which].items()}


def alpha(labels: Any, verdicts: Any, level: str) -> float:
    return float(krippendorff.alpha(np.array([labels, verdicts], float), level_of_measurement=level))


def test_ordinal_figures_of_one_draw_are_those_of_the_libraries(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, ORDINAL_5, [1, 2, 3, 4, 5])
    numbers = random_numbers(0, 5)
    found = figures(score(corpus, corpus.dimension(None), "median", [rater("r", numbers)], resamples=200))
    gold = people_of(corpus, corpus.dimension(None), "median", np.arange(ITEMS)).gold
    verdicts = numbers[:, 0]
    assert found["kendall_tau_b"] == pytest.approx(kendalltau(gold, verdicts).statistic)
    assert found["spearman_rho"] == pytest.approx(spearmanr(gold, verdicts).statistic)
    assert found["mse"] == pytest.approx(np.mean((gold - verdicts) ** 2))
    assert found["mae"] == pytest.approx(np.mean(abs(gold - verdicts)))
    assert found["exact_agreement"] == pytest.approx(np.mean(gold == verdicts))
    assert found["within_one_step"] == pytest.approx(np.mean(abs(gold - verdicts) <= 1))
    assert found["cohen_kappa"] == pytest.approx(cohen_kappa_score(gold, verdicts))
    assert found["quadratic_kappa"] == pytest.approx(cohen_kappa_score(gold, verdicts, weights="quadratic"))
    assert found["krippendorff_alpha"] == pytest.approx(alpha(gold, verdicts, "ordinal"))


def test_a_mean_of_draws_is_not_rounded_where_order_counts(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, ORDINAL_5, [1, 2, 3, 4, 5])
    numbers = random_numbers(3, 5, draws=3)
    found = figures(score(corpus, corpus.dimension(None), "median", [rater("r", numbers)], resamples=200))
    gold = people_of(corpus, corpus.dimension(None), "median", np.arange(ITEMS)).gold
    mean = numbers.mean(axis=1)
    assert found["kendall_tau_b"] == pytest.approx(kendalltau(gold, mean).statistic)
    assert found["mse"] == pytest.approx(np.mean((gold - mean) ** 2))
    rounded = np.floor(mean + 0.5)  # the nearest label, the higher of two as near
    assert found["cohen_kappa"] == pytest.approx(cohen_kappa_score(gold, rounded))


@pytest.mark.parametrize(("scale", "labels"), [(NOMINAL, ["present", "not_present"]), (PAIRWISE, ["A", "B", "tie"])])
def test_without_order_there_are_three_figures(tmp_path: Path, scale: dict[str, Any], labels: list[str]) -> None:
    corpus = corpus_of(tmp_path, scale, labels)
    numbers = random_numbers(1, len(labels))
    scores = score(corpus, corpus.dimension(None), "majority", [rater("r", numbers, "majority")], resamples=200)
    gold = people_of(corpus, corpus.dimension(None), "majority", np.arange(ITEMS)).gold
    known = np.isfinite(gold)
    found = figures(scores)
    assert set(found) == {"exact_agreement", "cohen_kappa", "krippendorff_alpha"}
    assert found["cohen_kappa"] == pytest.approx(cohen_kappa_score(gold[known], numbers[known, 0]))
    assert found["krippendorff_alpha"] == pytest.approx(alpha(gold[known], numbers[known, 0], "nominal"))
    assert scores["items_with_label"] == known.sum()


def test_interval_figures(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, INTERVAL, [0, 20, 45, 70, 100])
    values = np.random.default_rng(5).integers(0, 101, (ITEMS, 1)).astype(float)
    found = figures(score(corpus, corpus.dimension(None), "mean", [rater("r", values)], resamples=200))
    gold = people_of(corpus, corpus.dimension(None), "mean", np.arange(ITEMS)).gold
    assert found["kendall_tau_b"] == pytest.approx(kendalltau(gold, values[:, 0]).statistic)
    assert found["krippendorff_alpha"] == pytest.approx(alpha(gold, values[:, 0], "interval"))
    assert "cohen_kappa" not in found


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


def test_position_of_pairs(tmp_path: Path) -> None:
    """One rater takes the text shown first, one takes the left text in either order."""
    corpus = corpus_of(tmp_path, PAIRWISE, ["A", "B", "tie"])
    swapped = np.tile([False, True], (ITEMS, 1))
    first_shown, left = np.tile([0.0, 1.0], (ITEMS, 1)), np.zeros((ITEMS, 2))
    raters = [rater("first", first_shown, "majority", swapped), rater("left", left, "majority", swapped)]
    scores = score(corpus, corpus.dimension(None), "majority", raters, resamples=200)
    one, other = (record["position"] for record in scores["raters"])
    assert (one["chose_first_shown"], one["consistent"], one["items_in_both_orders"]) == (1.0, 0.0, ITEMS)
    assert (other["chose_first_shown"], other["consistent"]) == (0.5, 1.0)
    assert [record["self_agreement"] for record in scores["raters"]] == [0.0, 1.0]


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


def test_shares_and_length(tmp_path: Path) -> None:
    """A rater that says A for the longer left text: its verdicts go with length."""
    corpus = corpus_of(tmp_path, PAIRWISE, ["A", "B", "tie"])
    lengths = [len(corpus.item(i).inputs["left"].split()) - 2 for i in range(ITEMS)]
    numbers = [[0.0 if more > 0 else 1.0 if more < 0 else 2.0] for more in lengths]
    record = score(corpus, corpus.dimension(None), "majority", [rater("r", numbers, "majority")], resamples=200)[
        "raters"
    ][0]
    assert sum(record["verdict_shares"].values()) == pytest.approx(1)
    assert record["verdict_shares"]["A"] == pytest.approx(np.mean([more > 0 for more in lengths]))
    signs = np.sign(lengths)
    assert record["length_correlation"]["spearman_rho"] == pytest.approx(spearmanr(lengths, signs).statistic)


@pytest.mark.parametrize("numbers", [[[2.0]] * ITEMS, [[NAN]] * ITEMS])
def test_what_is_undefined_is_null_with_a_reason(tmp_path: Path, numbers: list[list[float]]) -> None:
    corpus = corpus_of(tmp_path, ORDINAL_5, [1, 2, 3, 4, 5], people=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = score(corpus, corpus.dimension(None), "median", [rater("r", numbers)], resamples=200)
    json.dumps(scores, allow_nan=False)
    tau = scores["raters"][0]["agreement"]["kendall_tau_b"]
    assert tau["value"] is None
    assert tau["reason"]
    assert scores["human"]["alpha"]["value"] is None
    assert scores["raters"][0]["alternative_annotator_test"]["reason"]


def test_different_items_are_refused(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, ORDINAL_5, [1, 2, 3, 4, 5])
    raters = [rater("one", random_numbers(0, 5)), rater("other", random_numbers(0, 5)[:-1])]
    with pytest.raises(DataError, match=r"other and one rated different items \(1 are in one alone, such as 'i59'\)"):
        score(corpus, corpus.dimension(None), "median", raters, resamples=200)


def test_draws_are_read_in_their_order_with_gaps(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path / "c", ORDINAL_5, [1, 2, 3, 4, 5])
    lines = [("i03", 1, 5), ("i01", 0, None), ("i03", 0, 2)]
    records = [{"item_id": i, "dimension": DIMENSION, "draw": draw, "verdict": verdict} for i, draw, verdict in lines]
    write_jsonl(tmp_path / "r.jsonl", records)
    found = read_draws(tmp_path / "r.jsonl", "r", corpus, corpus.dimension(None), "mean")
    assert (found.items.tolist(), found.drawn.tolist()) == ([1, 3], [1, 2])
    assert np.array_equal(found.numbers, [[NAN, NAN], [1, 4]], equal_nan=True)
    assert np.array_equal(found.values(corpus.dimension(None).scale), [NAN, 3.5], equal_nan=True)  # of 2 and 5


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"item_id": "elsewhere"}, "item_id 'elsewhere' is not in corpus small"),
        ({"dimension": "tone"}, "dimension 'tone'"),
        ({"verdict": 7}, "verdict 7 is not on scale 1..5"),
        ({"draw": -1}, "draw -1"),
        ({"item_id": "i00", "draw": 0}, "draw 0 of item 'i00' stands twice"),
    ],
)
def test_a_line_that_is_no_rating_is_named(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    corpus = corpus_of(tmp_path / "c", ORDINAL_5, [1, 2, 3, 4, 5])
    good = {"item_id": "i00", "dimension": DIMENSION, "draw": 0, "verdict": 3}
    write_jsonl(tmp_path / "r.jsonl", [good, {**good, "item_id": "i01", **change}])
    with pytest.raises(DataError) as caught:
        read_draws(tmp_path / "r.jsonl", "r", corpus, corpus.dimension(None), "mean")
    assert f"{tmp_path / 'r.jsonl'} line 2: " in str(caught.value)
    assert told in str(caught.value)
