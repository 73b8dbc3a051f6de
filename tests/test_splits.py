"""Splits by group: whole groups, near their shares, the same for the same seed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from raters.corpora import Corpus
from raters.records import ConfigError
from raters.splits import PARTS, SHARES, ids_sha256, split_corpus
from tests.small_corpora import small_corpus


def grouped(folder: Path, groups: Mapping[str, str], texts: Mapping[str, str] | None = None) -> Corpus:
    """Return a corpus whose items are in the given groups; no two texts are the same unless given."""
    inputs = {item_id: {"text": (texts or {}).get(item_id, f"Text {item_id}.")} for item_id in groups}
    labels = {item_id: {"ann": 1} for item_id in groups}
    return small_corpus(folder, labels, inputs=inputs, groups=groups)


def parts_by_id(corpus: Corpus, seed: int) -> dict[str, int]:
    return dict(zip(corpus.item_ids, split_corpus(corpus, seed).parts.tolist(), strict=True))


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    """120 items in 40 groups of one to five."""
    sizes = [1, 2, 3, 4, 5] * 8
    return grouped(tmp_path, {f"item{g}-{n}": f"group{g}" for g, size in enumerate(sizes) for n in range(size)})


def test_the_same_seed_makes_the_same_split_and_others_make_others(corpus: Corpus) -> None:
    splits = [tuple(split_corpus(corpus, seed).parts.tolist()) for seed in range(6)]
    assert splits == [tuple(split_corpus(corpus, seed).parts.tolist()) for seed in range(6)]
    assert len(set(splits)) == 6


@pytest.mark.parametrize("seed", range(10))
def test_groups_stay_whole_and_shares_are_near(corpus: Corpus, seed: int) -> None:
    split = split_corpus(corpus, seed)
    for code in np.unique(corpus.groups):
        assert len(set(split.parts[corpus.groups == code].tolist())) == 1
    counts = np.bincount(split.parts, minlength=3)
    # A part takes its last group while it is below its share, so it is off by less than the largest group of 5.
    assert np.abs(counts - 120 * np.array([0.70, 0.15, 0.15])).max() < 5


def test_items_that_stand_alone_are_split_70_15_15_to_the_item(tmp_path: Path) -> None:
    corpus = small_corpus(tmp_path, {f"item{number}": {"ann": 1} for number in range(200)})
    counts = np.bincount(split_corpus(corpus, 3).parts).tolist()
    assert counts == [140, 30, 30]


def test_an_items_part_does_not_depend_on_the_order_of_the_file_or_the_names_of_groups(tmp_path: Path) -> None:
    groups = {f"item{number}": f"group{number % 13}" for number in range(60)}
    forwards = grouped(tmp_path / "forwards", groups)
    backwards = grouped(tmp_path / "backwards", dict(reversed(groups.items())))
    renamed = grouped(tmp_path / "renamed", {item_id: f"topic {name[5:]}!" for item_id, name in groups.items()})
    for seed in range(5):
        assert parts_by_id(forwards, seed) == parts_by_id(backwards, seed) == parts_by_id(renamed, seed)


def test_duplicates_fall_into_one_part_although_their_groups_differ(tmp_path: Path) -> None:
    groups = {f"item{number}": f"group{number}" for number in range(40)}
    texts = {f"item{number}": f"Text {number // 2}." for number in range(40)}
    corpus = grouped(tmp_path, groups, texts)
    for seed in range(5):
        parts = parts_by_id(corpus, seed)
        assert all(parts[f"item{number}"] == parts[f"item{number + 1}"] for number in range(0, 40, 2))


@pytest.mark.parametrize("sizes", [(1, 1, 1), (50, 1, 1), (20, 20, 1), (9, 9, 9), (40, 1, 1, 1), (1, 30, 30, 1)])
def test_no_part_is_empty_with_three_groups_or_more(tmp_path: Path, sizes: tuple[int, ...]) -> None:
    corpus = grouped(tmp_path, {f"item{g}-{n}": f"group{g}" for g, size in enumerate(sizes) for n in range(size)})
    for seed in range(20):
        assert set(split_corpus(corpus, seed).parts.tolist()) == {0, 1, 2}


def test_two_groups_are_refused_with_the_mend(tmp_path: Path) -> None:
    corpus = grouped(tmp_path, {"a": "x", "b": "y", "c": "x"})
    with pytest.raises(ConfigError, match=r"metadata\.group .*2 group\(s\).*change group_by, or give --split all"):
        split_corpus(corpus, 0)


def test_indices_are_those_of_the_parts(corpus: Corpus) -> None:
    split = split_corpus(corpus, 1)
    together = np.concatenate([split.indices(part) for part in PARTS])
    assert sorted(together.tolist()) == list(range(120)) == split.indices("all").tolist()
    for code, part in enumerate(PARTS):
        assert (split.parts[split.indices(part)] == code).all()
        assert (np.diff(split.indices(part)) > 0).all()


def test_the_record_and_the_hashes_say_which_items_are_where(corpus: Corpus) -> None:
    split = split_corpus(corpus, 1)
    record = split.as_record(corpus)
    assert (record["corpus"], record["split_seed"], record["shares"]) == ("small", 1, list(SHARES))
    for part in PARTS:
        assert record[part] == [corpus.item_ids[index] for index in split.indices(part)]
        text = "\n".join(sorted(record[part]))
        assert split.hashes(corpus)[part] == hashlib.sha256(text.encode()).hexdigest()
    assert len(set(split.hashes(corpus).values())) == 3


def test_a_hash_of_ids_ignores_their_order_only() -> None:
    assert ids_sha256(["b", "a"]) == ids_sha256(["a", "b"])
    assert ids_sha256(["a"]) != ids_sha256(["a", "b"])
