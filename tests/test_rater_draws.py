"""What a rater said: every line that cannot be used is named, and no two raters go by one name."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raters.rater_draws import file_name, rated_dimension, rater_names, read_draws
from raters.records import MOST_DRAWS, DataError
from tests.scored_corpora import NAN, corpus_of, rater
from tests.small_corpora import DIMENSION, ORDINAL_5, PAIRWISE, dimension_of, write_jsonl


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


@pytest.mark.parametrize(
    ("aggregate", "row", "value", "verdict"),
    [
        ("mean", [0, 1, 1, NAN], 5 / 3 + 0.0, 1),
        ("mean", [0, 1, NAN, NAN], 1.5, 1),  # as near to 1 as to 2: the higher
        ("median", [0, 4, 4, 1], 3.5, 3),
        ("majority", [3, 0, 0, 3], 4.0, 3),  # as frequent: the one drawn first
        ("majority", [NAN, 0, 0, 3], 1.0, 0),
        ("mean", [NAN] * 4, NAN, NAN),
        ("median", [NAN] * 4, NAN, NAN),
        ("majority", [NAN] * 4, NAN, NAN),
    ],
)
def test_draws_of_an_item_together(aggregate: Any, row: list[float], value: float, verdict: float) -> None:
    scale = dimension_of(ORDINAL_5).scale
    one = rater("r", [row], aggregate)
    assert one.values(scale).tolist() == pytest.approx([value], nan_ok=True)
    assert one.verdicts(scale).tolist() == pytest.approx([verdict], nan_ok=True)


@pytest.mark.parametrize("numbers", [[1.0, 1.0, 0.0], [1.0, NAN, 1.0]])
def test_draws_without_order_have_a_majority(numbers: list[float]) -> None:
    assert rater("r", [numbers], "majority").verdicts(dimension_of(PAIRWISE).scale).tolist() == [1.0]


@pytest.mark.parametrize("change", [{"item_id": ["i00"]}, {"item_id": {}}, {"draw": 10**12}, {"draw": True}])
def test_a_value_of_another_kind_is_named(tmp_path: Path, change: dict[str, Any]) -> None:
    corpus = corpus_of(tmp_path / "c", ORDINAL_5, [1, 2, 3, 4, 5])
    write_jsonl(tmp_path / "r.jsonl", [{"item_id": "i00", "dimension": DIMENSION, "draw": 0, "verdict": 3, **change}])
    with pytest.raises(DataError) as caught:
        read_draws(tmp_path / "r.jsonl", "r", corpus, corpus.dimension(None), "mean")
    assert str(caught.value).startswith(f"{tmp_path / 'r.jsonl'} line 1: ")
    ((key, value),) = change.items()
    assert f"{key} {value!r}" in str(caught.value)


@pytest.mark.parametrize("verdict", [True, "3", [3], {}, 2.5, 1e300, -1])
def test_a_verdict_off_the_scale_is_shown(tmp_path: Path, verdict: Any) -> None:
    corpus = corpus_of(tmp_path / "c", ORDINAL_5, [1, 2, 3, 4, 5])
    write_jsonl(tmp_path / "r.jsonl", [{"item_id": "i00", "dimension": DIMENSION, "verdict": verdict}])
    with pytest.raises(DataError) as caught:
        read_draws(tmp_path / "r.jsonl", "r", corpus, corpus.dimension(None), "mean")
    assert str(caught.value).startswith(f"{tmp_path / 'r.jsonl'} line 1: verdict {verdict!r}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["item_id", "dimension", "verdict"])
def test_a_missing_key_is_named(tmp_path: Path, key: str) -> None:
    corpus = corpus_of(tmp_path / "c", ORDINAL_5, [1, 2, 3, 4, 5])
    record = {"item_id": "i00", "dimension": DIMENSION, "verdict": 3}
    del record[key]
    write_jsonl(tmp_path / "r.jsonl", [record])
    with pytest.raises(DataError, match=f"r.jsonl line 1: no {key}; "):
        read_draws(tmp_path / "r.jsonl", "r", corpus, corpus.dimension(None), "mean")


def test_as_many_draws_are_read_as_are_made(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path / "c", ORDINAL_5, [1, 2, 3, 4, 5])
    record = {"item_id": "i00", "dimension": DIMENSION, "verdict": 3}
    write_jsonl(tmp_path / "r.jsonl", [{**record, "draw": MOST_DRAWS - 1}])
    assert read_draws(tmp_path / "r.jsonl", "r", corpus, corpus.dimension(None), "mean").numbers.shape == (1, 1024)
    write_jsonl(tmp_path / "r.jsonl", [{**record, "draw": MOST_DRAWS}])
    with pytest.raises(DataError, match="draw 1024 is no number from 0 to 1023; mend the line"):
        read_draws(tmp_path / "r.jsonl", "r", corpus, corpus.dimension(None), "mean")


def test_what_was_read_is_known_by_its_hash_and_its_raters(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path / "c", ORDINAL_5, [1, 2, 3, 4, 5])
    records = [
        {"item_id": f"i0{place}", "dimension": DIMENSION, "verdict": 3, **more}
        for place, more in enumerate(({"rater_sha256": "a"}, {"rater_sha256": "b"}, {}))
    ]
    path = tmp_path / "r.jsonl"
    write_jsonl(path, records)
    found = read_draws(path, "r", corpus, corpus.dimension(None), "mean")
    assert found.made_by == {"a", "b", "None"}
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("tail", ['{"item_id": "i02", "dim', json.dumps({"item_id": "i02"}), '{"verdict": "\xc3'])
def test_a_torn_last_line_is_passed_over_if_the_run_is_not_complete(tmp_path: Path, tail: str) -> None:
    corpus = corpus_of(tmp_path / "c", ORDINAL_5, [1, 2, 3, 4, 5])
    whole = [{"item_id": f"i0{place}", "dimension": DIMENSION, "verdict": 3} for place in range(2)]
    path = tmp_path / "r.jsonl"
    write_jsonl(path, whole)
    path.write_bytes(path.read_bytes() + tail.encode("latin-1"))
    found = read_draws(path, "r", corpus, corpus.dimension(None), "mean", complete=False)
    assert found.items.tolist() == [0, 1]
    with pytest.raises(DataError, match=r"r\.jsonl line 3: "):
        read_draws(path, "r", corpus, corpus.dimension(None), "mean")
    path.write_bytes(tail.encode("latin-1"))
    with pytest.raises(DataError, match="holds no records"):
        rated_dimension(path, complete=False)


def test_the_dimension_stands_in_the_first_line(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    write_jsonl(path, [{"dimension": "tone"}, {"dimension": "clarity"}])
    assert rated_dimension(path) == "tone"
    for line, told in (
        ({"item_id": "i00"}, "line 1: no dimension; "),
        ({"dimension": [1]}, r"line 1: dimension \[1\]"),
    ):
        write_jsonl(path, [line])
        with pytest.raises(DataError, match=told):
            rated_dimension(path)


# --- names ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        (["a"], ["a"]),
        (["a", "b"], ["a", "b"]),
        (["one/rate_items", "two/rate_items"], ["one/rate_items", "two/rate_items"]),
        (["a/x/run", "b/x/run", "c/y/run"], ["a/x/run", "b/x/run", "y/run"]),
        (["a 3", "x/a", "y/a", "a_3"], ["a 3", "x/a", "y/a", "a_3 2"]),
        (["GPT", "gpt"], ["GPT", "gpt 2"]),
        (["a", "a 2", "A"], ["a", "a 2", "A 3"]),
        (["caf\u00e9", "cafe\u0301"], ["caf\u00e9", "cafe\u0301 2"]),
        (["a?", "a!"], ["a?", "a! 2"]),
        (["red\x1b[31m\nforged"], ["red\ufffd[31m\ufffdforged"]),
    ],
)
def test_raters_are_named_by_their_folders(tmp_path: Path, folders: list[str], names: list[str]) -> None:
    found = rater_names([tmp_path / folder / "ratings.jsonl" for folder in folders])
    assert found == names
    files = [unicodedata.normalize("NFC", file_name(name)).casefold() for name in found]
    assert len(set(files)) == len(files)


def test_files_of_one_folder_are_named_by_their_own_names(tmp_path: Path) -> None:
    files = [tmp_path / "mine" / name for name in ("good.jsonl", "bad.jsonl", "bad.jsonl")]
    assert rater_names(files) == ["mine/good", "mine/bad", "mine/bad 2"]


def test_a_path_without_a_folder_is_named_by_where_the_user_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine" / "deeper").mkdir(parents=True)
    for folder, path in (("mine", "ratings.jsonl"), ("mine/deeper", "../ratings.jsonl")):
        monkeypatch.chdir(tmp_path / folder)
        assert rater_names([Path(path)]) == ["mine"]
    assert rater_names([Path("/ratings.jsonl")]) == ["rater"]


def test_a_long_name_is_a_file_name_all_the_same(tmp_path: Path) -> None:
    found = rater_names([tmp_path / place / ("ü" * 120) / "ratings.jsonl" for place in "xy"])
    assert len(set(found)) == 2
    for name in found:
        (tmp_path / f"{file_name(name)}.yaml.partial").touch()
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("name", ["..", ".hidden", "/", "a/../b"])
def test_a_name_stays_in_its_folder(name: str) -> None:
    made = file_name(name)
    assert made
    assert not made.startswith(".")
    assert "/" not in made
