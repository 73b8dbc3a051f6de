"""What a run achieved and what chance would have: every figure worked out by hand or over all permutations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from raters.gold import GoldMethod, default_method, gold_labels
from raters.ledger import UNDRAWN, Ledger
from raters.records import Chance
from raters.sampling import SamplingOptions
from raters.utilisation import (
    nearest_verdict,
    plot_utilisation,
    self_agreement,
    shuffled_label_null,
    summarise,
    utilisation,
)
from tests.small_corpora import DIMENSION, INTERVAL, NOMINAL, ORDINAL_3, ORDINAL_5, small_corpus

NAN = float("nan")
FIXED = SamplingOptions(strategy="fixed")
ADAPTIVE = SamplingOptions(strategy="adaptive")


def null(
    numbers: Sequence[Sequence[float]], labels: Sequence[float], rows: Sequence[int] | None = None, tolerance: float = 0
) -> list[float]:
    unit_rows = np.arange(len(numbers)) if rows is None else np.array(rows)
    weights = np.bincount(unit_rows, minlength=len(numbers)).astype(float)
    found: list[float] = shuffled_label_null(np.array(numbers, float), weights, np.array(labels), tolerance)[0].tolist()
    return found


def test_utilisation_is_the_share_matched_within_k_draws() -> None:
    matched = np.array([0, 2, -1, 1, 0])
    assert [utilisation(matched, k) for k in (1, 2, 3, 16)] == [0.4, 0.6, 0.8, 0.8]


def test_null_of_two_items_by_hand() -> None:
    """Verdicts 1 2 and 2 2, labels 1 and 2. A permuted label is 1 or 2, each half of the time.

    A 1 comes up in one row of two, at once; a 2 in one row at once, in both within two draws.
    """
    assert null([[1, 2], [2, 2]], [1, 2]) == [0.5, 0.75]


def test_null_takes_labels_as_often_as_they_are() -> None:
    """Three of four labels are 1, and one row of four says it: 3/4 x 1/4, and for the 2 1/4 x 3/4."""
    assert null([[1], [2], [2], [2]], [1, 1, 1, 2]) == pytest.approx([3 / 16 + 3 / 16])


def test_unreadable_verdicts_match_nothing() -> None:
    assert null([[NAN, 1], [NAN, NAN]], [1, 1]) == [0, 0.5]


def test_null_with_a_tolerance() -> None:
    """Verdicts 0 and 3, labels 1 and 3, tolerance 1: the 1 is near the 0, the 3 is the 3: half and half."""
    assert null([[0], [3]], [1, 3], tolerance=1) == [0.5]
    assert null([[0], [2]], [1, 1], tolerance=1) == [1]
    assert null([[0.2], [9.0]], [0.3, 0.3], tolerance=0.1) == [0.5]  # 0.3 - 0.2 in binary fractions


@pytest.mark.parametrize("tolerance", [0, 1])
def test_null_is_the_mean_over_all_permutations(tolerance: float) -> None:
    chooser = np.random.default_rng(4)
    numbers = chooser.integers(0, 4, size=(5, 3)).astype(float)
    numbers[1, 0] = numbers[3, 2] = NAN
    labels = np.array([0.0, 1.0, 1.0, 3.0, 2.0])
    orders = list(permutations(labels))

    def share_matched(order: tuple[float, ...], k: int) -> float:
        return sum((abs(row[:k] - label) <= tolerance).any() for row, label in zip(numbers, order, strict=True)) / 5

    expected = [sum(share_matched(order, k) for order in orders) / len(orders) for k in (1, 2, 3)]
    assert null(numbers.tolist(), labels.tolist(), tolerance=tolerance) == pytest.approx(expected)


def test_a_row_with_several_labels_counts_for_each() -> None:
    """Row 0 has two labels, row 1 one. Labels 1, 1, 2; row 0 says 1, row 1 says 2.

    A 1 (2/3 of labels) is matched by the two units of row 0: 2/3; a 2 (1/3) by the one of row 1: 1/3.
    """
    assert null([[1], [2]], [1, 1, 2], rows=[0, 0, 1]) == pytest.approx([2 / 3 * 2 / 3 + 1 / 3 * 1 / 3])


def test_the_error_of_the_null_is_that_of_a_mean_over_rows() -> None:
    """Rows give 1, 0, 0, 1 (labels are all 1): mean 1/2, sum of squares 4 x 1/4, so 1 / 4 over four rows."""
    mean, error = shuffled_label_null(np.array([[1.0], [2.0], [2.0], [1.0]]), np.ones(4), np.ones(4), 0)
    assert (mean.tolist(), error.tolist()) == ([0.5], [0.25])


@pytest.mark.parametrize("seed", range(3))
def test_an_adaptive_run_of_a_model_that_knows_has_the_null_of_all_its_draws(seed: int, tmp_path: Path) -> None:
    """Of 300 items the model always says the label of 7 in 10, and guesses the rest; labels are five, evenly.

    A permuted label is matched within 16 draws with 1/5 at the items it knows, and 1 - .8^16 = .97 at the others:
    .7 x .2 + .3 x .97 = .43. Rows that stop early would leave only the guessed ones in the tail, near .97.
    """
    chooser = np.random.default_rng(seed)
    labels = {f"i{number:03}": {"ann": 1 + number % 5} for number in range(300)}
    ledger = ledger_with(tmp_path, labels, {}, ORDINAL_5, k=16)
    numbers, units = ledger.numbers["first"], ledger.unit_numbers
    knows = chooser.random(300) < 0.7
    drawn = np.where(knows[:, None], units[:, None], chooser.integers(0, 5, (300, 16)))
    matched = (drawn == units[:, None]).argmax(axis=1)
    matched[~(drawn == units[:, None]).any(axis=1)] = -1
    options = SamplingOptions(strategy="adaptive", null_rows=100)
    for row in range(300):
        stop = 16 if row < 100 or matched[row] < 0 else matched[row] + 1
        numbers[row, :stop] = drawn[row, :stop]
    ledger.matched_draw[:] = matched
    found = {point["k"]: point for point in summarise(ledger, options)["utilisation"]}
    assert found[1]["null"] == pytest.approx(0.2, abs=0.03)  # of all 300 items
    assert abs(found[16]["null"] - 0.43) < 3 * found[16]["null_sd"] < 0.25
    assert found[16]["share"] > 0.95
    without = summarise(ledger, SamplingOptions(strategy="adaptive", null_rows=0))["utilisation"]
    assert [point["null"] is None for point in without] == [False, True, True, True, True]


def test_very_many_labels_are_sampled_evenly() -> None:
    """Labels 0 to 999 each once, every row says 0 to 499 with tolerance 1/2: half of all labels, nearly."""
    numbers = np.tile(np.arange(500.0), (3, 1))
    found = null(numbers.tolist(), np.arange(1000.0).tolist(), rows=[0] * 1000, tolerance=0.5)
    assert found[-1] == pytest.approx(0.5, abs=0.02)


def test_self_agreement_by_hand() -> None:
    """1 1 2: 1 pair of 3; one verdict alone: no pair; 3 3: 1 of 1; 2 3: 0 of 1. Together 2 of 5."""
    numbers = np.array([[1, 1, 2], [1, NAN, UNDRAWN], [3, 3, NAN], [2, UNDRAWN, 3]])
    assert self_agreement(numbers) == (pytest.approx(2 / 5), 3)
    assert self_agreement(np.array([[1.0], [2.0]])) == (None, 0)


def ledger_with(
    folder: Path,
    labels: Mapping[str, Mapping[str, Any]],
    draws: Mapping[str, Sequence[Any]],
    scale: Mapping[str, Any] = ORDINAL_3,
    *,
    k: int = 2,
    method: GoldMethod | None = None,
    escalated: Mapping[str, Sequence[Any]] | None = None,
) -> Ledger:
    """Return a ledger of items in the order of the corpus, with the verdicts given for each; None is unreadable."""
    corpus = small_corpus(folder, labels, scale)
    dimension = corpus.dimension(None)
    gold = gold_labels(corpus, DIMENSION, method or default_method(dimension.scale))
    most: dict[Chance, int] = {"first": k} | ({} if escalated is None else {"escalated": 2})
    ledger = Ledger(corpus, dimension, gold, np.unique(gold.items), most)
    by_chance: list[tuple[Chance, Mapping[str, Sequence[Any]]]] = [("first", draws), ("escalated", escalated or {})]
    for chance, given in by_chance:
        for row, index in enumerate(ledger.rows.tolist()):
            for draw, verdict in enumerate(given.get(corpus.item_ids[index], [])):
                for unit in ledger.units(row):
                    label = dimension.scale.label(float(ledger.unit_numbers[unit]))
                    record = {
                        "chance": chance,
                        "draw": draw,
                        "verdict": verdict,
                        "accepted": verdict == label,
                        "finish_reason": "length" if verdict is None else "stop",
                        "prompt_tokens": 10,
                        "completion_tokens": 5,
                    }
                    ledger.enter(record, row, unit, 0)
    return ledger


def test_a_summary_by_hand(tmp_path: Path) -> None:
    labels = {name: {"ann": label} for name, label in zip("abcde", (1, 1, 2, 3, 3), strict=True)}
    draws = {"a": [1, 2], "b": [2, 3], "c": [3, 2], "d": [None, 1], "e": [None, None]}
    found = summarise(ledger_with(tmp_path, labels, draws), FIXED)
    assert (found["items"], found["labels"], found["k"], found["strategy"]) == (5, 5, 2, "fixed")
    # Matched: a at draw 1, c at draw 2.
    assert [(point["k"], point["share"]) for point in found["utilisation"]] == [(1, 0.2), (2, 0.4)]
    # A 1 (2/5): in a at once, and d: 1/5, 2/5. A 2 (1/5): in b, then a and c: 1/5, 3/5. A 3 (2/5): in c, then b.
    nulls = [2 / 5 * 1 / 5 + 1 / 5 * 1 / 5 + 2 / 5 * 1 / 5, 2 / 5 * 2 / 5 + 1 / 5 * 3 / 5 + 2 / 5 * 2 / 5]
    assert [point["null"] for point in found["utilisation"]] == pytest.approx(nulls)
    assert [point["null_sd"] for point in found["utilisation"]] == pytest.approx(
        [(share * (1 - share) / 5) ** 0.5 for share in nulls]
    )
    assert found["null_items"] == 5
    assert (found["kept"], found["kept_by_chance"], found["draws"]) == (2, {"first": 2}, {"first": 10})
    assert (found["first_draws_per_kept_trace"], found["fixed_k_draws_per_kept_trace"]) == (5, 5)
    assert (found["unreadable"], found["unreadable_share"]) == (3, 0.3)
    assert found["finish_reasons"] == {"stop": 7, "length": 3}
    assert (found["prompt_tokens"], found["completion_tokens"]) == (100, 50)
    assert found["draws_without_token_count"] == 0
    rows = [
        (r["label"], r["labels"], r["kept"], r["coverage"], r["share_of_labels"], r["share_of_kept"])
        for r in found["coverage_by_label"]
    ]
    assert rows == [("1", 2, 1, 0.5, 0.4, 0.5), ("2", 1, 1, 1.0, 0.2, 0.5), ("3", 2, 0, 0.0, 0.4, 0.0)]
    # b is a 1 and came no nearer than 2; d is a 3 and came no nearer than 1; e was never read.
    assert found["unmatched"]["labels"] == 3
    assert found["unmatched"]["by_distance_of_nearest_verdict"] == {"1": 1, "2": 1, "nothing readable": 1}
    # a, b and c have a pair each, and none of the same verdict.
    assert found["self_agreement"] == {"share": 0.0, "items": 3}
    assert found["position"] is None


def test_a_summary_of_an_adaptive_run(tmp_path: Path) -> None:
    labels = {name: {"ann": label} for name, label in zip("abc", (1, 2, 3), strict=True)}
    ledger = ledger_with(tmp_path, labels, {"a": [1], "b": [1, 1, 2], "c": [1, 1, 1, 1]}, k=4)
    found = summarise(ledger, ADAPTIVE)
    assert [(point["k"], point["share"]) for point in found["utilisation"]] == [
        (1, pytest.approx(1 / 3)),
        (2, pytest.approx(1 / 3)),
        (4, pytest.approx(2 / 3)),
    ]
    assert found["null_items"] == 0
    # 8 draws for 2 kept traces; all k would have been 12.
    assert (found["first_draws_per_kept_trace"], found["fixed_k_draws_per_kept_trace"]) == (4, 6)
    # No row was to have all its draws: b and c went on because they missed, and would tell of misses alone.
    assert found["self_agreement"] == {"share": None, "items": 0}


def test_draw_counts_are_powers_of_two_and_k(tmp_path: Path) -> None:
    ledger = ledger_with(tmp_path, {"a": {"ann": 1}}, {"a": [2] * 12}, k=12)
    assert [point["k"] for point in summarise(ledger, FIXED)["utilisation"]] == [1, 2, 4, 8, 12]


def test_second_chances_count_as_kept_and_not_as_utilisation(tmp_path: Path) -> None:
    labels = {"a": {"ann": 1}, "b": {"ann": 2}}
    ledger = ledger_with(tmp_path, labels, {"a": [1, 3], "b": [3, 3]}, escalated={"b": [2]})
    found = summarise(ledger, FIXED)
    assert [point["share"] for point in found["utilisation"]] == [0.5, 0.5]
    assert (found["kept"], found["kept_by_chance"]) == (2, {"first": 1, "escalated": 1})
    assert found["draws"] == {"first": 4, "escalated": 1}
    assert found["first_draws_per_kept_trace"] == 4


def test_nothing_kept_divides_by_nothing(tmp_path: Path) -> None:
    found = summarise(ledger_with(tmp_path, {"a": {"ann": 1}}, {"a": [2, 2]}), FIXED)
    assert found["first_draws_per_kept_trace"] is None
    assert found["fixed_k_draws_per_kept_trace"] is None
    assert found["coverage_by_label"][0]["share_of_kept"] is None
    assert found["coverage_by_label"][1]["coverage"] is None


def test_coverage_by_how_far_people_agree(tmp_path: Path) -> None:
    """Agreement with the median: a 1, b 2/3, c 1/2, d 1/3."""
    labels = {
        "a": {"ann": 2, "bob": 2},
        "b": {"ann": 4, "bob": 4, "cyd": 5},
        "c": {"ann": 2, "bob": 3},
        "d": {"ann": 1, "bob": 3, "cyd": 5},
    }
    draws = {"a": [2, 1], "b": [5, 5], "c": [2, 2], "d": [3, 3]}
    found = summarise(ledger_with(tmp_path, labels, draws, ORDINAL_5), FIXED)["coverage_by_human_agreement"]
    assert found == [
        {"annotators": "everyone agrees", "labels": 1, "kept": 1, "coverage": 1.0},
        {"annotators": "most agree", "labels": 1, "kept": 0, "coverage": 0.0},
        {"annotators": "half or fewer", "labels": 2, "kept": 2, "coverage": 1.0},
    ]


def test_coverage_on_an_interval_scale_is_by_fifths(tmp_path: Path) -> None:
    values = {"a": 0.0, "b": 19.99, "c": 20.0, "d": 55.0, "e": 100.0}
    labels = {name: {"ann": value} for name, value in values.items()}
    ledger = ledger_with(tmp_path, labels, {"a": [0.0, 5.0], "e": [100.0, 0.0]}, INTERVAL)
    rows = summarise(ledger, FIXED)["coverage_by_label"]
    assert [(row["label"], row["labels"], row["kept"]) for row in rows] == [
        ("0..20", 2, 1),
        ("20..40", 1, 0),
        ("40..60", 1, 0),
        ("60..80", 0, 0),
        ("80..100", 1, 1),
    ]


def test_the_nearest_verdict_counts_both_kinds_of_draws(tmp_path: Path) -> None:
    labels = {"a": {"ann": 5}, "b": {"ann": 5}, "c": {"ann": 3}}
    draws = {"a": [1, None], "b": [None, None], "c": [2, 4]}
    ledger = ledger_with(tmp_path, labels, draws, ORDINAL_5, escalated={"a": [4]})
    assert nearest_verdict(ledger, 0) == (3.0, 1.0)  # the 4, which is place 3
    assert nearest_verdict(ledger, 1) is None
    assert nearest_verdict(ledger, 2) == (1.0, 1.0)  # of two equally near the lower


def test_on_a_nominal_scale_every_other_verdict_is_as_far(tmp_path: Path) -> None:
    ledger = ledger_with(tmp_path, {"a": {"ann": "present"}}, {"a": ["not_present"] * 2}, NOMINAL)
    assert summarise(ledger, FIXED)["unmatched"]["by_distance_of_nearest_verdict"] == {"1": 1}


def test_distances_stand_in_the_order_of_numbers(tmp_path: Path) -> None:
    labels = {name: {"ann": label} for name, label in zip("abc", (50, 60, 70), strict=True)}
    ledger = ledger_with(tmp_path, labels, {"a": [52], "b": [70], "c": [45]}, INTERVAL)
    distances = summarise(ledger, FIXED)["unmatched"]["by_distance_of_nearest_verdict"]
    # In tenths of the scale, since hardly two distances are the same: 2 and 10 are within the first, 25 the third.
    assert distances == {"up to 10": 2, "up to 30": 1}


def test_the_plot_is_an_image_that_comes_out_the_same_again(tmp_path: Path) -> None:
    labels = {name: {"ann": 1 + place % 3} for place, name in enumerate("abcdef")}
    summary = summarise(ledger_with(tmp_path, labels, {name: [1, 2] for name in "abcdef"}), FIXED)
    for name in ("one.svg", "two.svg"):
        plot_utilisation(summary, tmp_path / name, "small: $quality$ ü")
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    assert ElementTree.parse(tmp_path / "one.svg").getroot().tag.endswith("svg")
