"""The quality of labels: figures worked out by hand, and by the krippendorff package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import krippendorff
import pytest

from raters.label_quality import label_quality
from tests.small_corpora import NOMINAL, ORDINAL_5, PAIRWISE, small_corpus

LABELS = {
    "a": {"eva": 1, "kim": 1, "lou": 3},
    "b": {"eva": 2, "kim": 2, "lou": 3},
    "c": {"eva": 3, "kim": 4, "lou": 3},
    "d": {"eva": 4, "kim": 4, "lou": 3},
    "e": {"eva": 5, "kim": 5, "lou": 3},
    "f": {"eva": 2},
    "g": {},
}


def only(quality: dict[str, Any]) -> dict[str, Any]:
    (dimension,) = quality["dimensions"]
    return dict(dimension)


@pytest.fixture(scope="module")
def quality(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return only(label_quality(small_corpus(tmp_path_factory.mktemp("q") / "c", LABELS, ORDINAL_5)))


def test_counts(quality: dict[str, Any]) -> None:
    assert quality["labels"] == 16
    assert quality["items_labelled"] == 6
    assert quality["items_with_one_annotator"] == 1
    assert quality["items_by_annotators"] == {"1": 1, "3": 5}
    assert quality["histogram"] == pytest.approx({"1": 2 / 16, "2": 3 / 16, "3": 6 / 16, "4": 3 / 16, "5": 2 / 16})


def test_alpha_is_that_of_the_krippendorff_package(quality: dict[str, Any]) -> None:
    people = ("eva", "kim", "lou")
    table = [[labels.get(person) for labels in LABELS.values()] for person in people]
    values = [[float("nan") if label is None else float(label) for label in row] for row in table]
    expected = krippendorff.alpha(values, level_of_measurement="ordinal", value_domain=[1, 2, 3, 4, 5])
    assert quality["alpha"]["value"] == pytest.approx(expected)


def test_annotators_beside_the_others(quality: dict[str, Any]) -> None:
    """Gold of two others is their median; of two middle labels the one nearest to halfway, the lower of two."""
    eva, kim, lou = quality["annotators"]
    assert [one["annotator"] for one in (eva, kim, lou)] == ["eva", "kim", "lou"]
    assert (eva["labels"], eva["compared"], kim["labels"]) == (6, 5, 5)
    # Of eva's items a to e the others, kim and lou, say 2, 2, 3, 3, 4: c agrees, and b.
    assert eva["exact"] == pytest.approx(2 / 5)
    assert lou["never_varies"]
    assert not kim["never_varies"]
    assert lou["agreement"] is None
    assert lou["most_frequent"] == "3"
    assert lou["most_frequent_share"] == 1.0


def test_what_each_rule_for_gold_labels_leaves(quality: dict[str, Any]) -> None:
    by_method = {one["method"]: one for one in quality["gold"]}
    assert {name: one["labels"] for name, one in by_method.items()} == {
        "median": 6,
        "majority": 6,
        "mean": 6,
        "paper": 6,
    }
    assert [name for name, one in by_method.items() if one["default"]] == ["median"]
    assert by_method["median"]["dropped"] == {"no annotation": 1}


def test_a_rule_without_its_order_is_left_out(tmp_path: Path) -> None:
    labels = {"a": {"eva": "present", "kim": "not_present"}, "b": {"eva": "present"}}
    found = only(label_quality(small_corpus(tmp_path / "c", labels, NOMINAL)))
    assert [one["method"] for one in found["gold"]] == ["majority"]
    assert found["gold"][0]["labels"] == 1
    assert found["annotators"][0]["figure"] == "cohen_kappa"


def test_duplicates_with_different_labels(tmp_path: Path) -> None:
    inputs = {name: {"text": text} for name, text in zip("abcd", ["same", " same", "other", "third"], strict=True)}
    labels = {"a": {"eva": 1, "kim": 1}, "b": {"eva": 5}, "c": {"eva": 2}, "d": {"eva": 2}}
    found = label_quality(small_corpus(tmp_path / "c", labels, ORDINAL_5, inputs=inputs))
    assert found["duplicates"] == 2
    assert only(found)["duplicates"] == {
        "groups": 1,
        "with_different_labels": 1,
        "listed": [{"text": "same", "items": [{"item": "a", "labels": ["1", "1"]}, {"item": "b", "labels": ["5"]}]}],
    }


def test_pairs_in_exchanged_order_are_the_same_texts(tmp_path: Path) -> None:
    inputs = {"a": {"left": "one", "right": "two"}, "b": {"left": "two", "right": "one"}}
    labels = {"a": {"eva": "A"}, "b": {"eva": "B"}}
    found = label_quality(small_corpus(tmp_path / "c", labels, PAIRWISE, inputs=inputs))
    assert found["duplicates"] == 2
