"""Reading a corpus: what the loader finds, how groups join, and that item texts stay on disk."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from raters.corpora import find_corpus, load_corpus
from raters.records import ConfigError, DataError, Item
from raters.scales import NominalScale, OrdinalScale
from tests.small_corpora import DIMENSION, GUIDELINE, ORDINAL_3, PAIRWISE, small_corpus, write_corpus, write_jsonl

LABELS = {"first": {"ann": 2, "bob": 3}, "second": {"bob": 1}, "third": {}}


def test_a_corpus_is_read_as_it_stands(tmp_path: Path) -> None:
    corpus = small_corpus(tmp_path, LABELS, ORDINAL_3)
    assert corpus.name == "small"
    assert corpus.item_ids == ["first", "second", "third"]
    assert corpus.annotator_ids == ["ann", "bob"]
    assert corpus.group_by is None
    dimension = corpus.dimension(None)
    assert dimension.name == DIMENSION
    assert dimension.scale == OrdinalScale(labels=(1, 2, 3))
    assert dimension.guideline == GUIDELINE
    assert dimension.guideline_sha256 == hashlib.sha256(GUIDELINE.encode()).hexdigest()
    table = corpus.annotations(DIMENSION)
    assert table.items.tolist() == [0, 0, 1]
    assert table.annotators.tolist() == [0, 1, 1]
    assert table.numbers.tolist() == [1.0, 2.0, 0.0]  # places of 2, 3 and 1 on the scale


def test_hashes_are_those_of_the_files(tmp_path: Path) -> None:
    corpus = small_corpus(tmp_path, LABELS, ORDINAL_3)
    assert corpus.sha256 == {
        name: hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
        for name in ("corpus.yaml", "items.jsonl", "annotations.jsonl")
    }


def test_several_dimensions_each_with_its_scale_and_labels(tmp_path: Path) -> None:
    write_corpus(tmp_path, {"one": {}, "two": {}}, ORDINAL_3)
    (tmp_path / "tone.md").write_text("\nSay whether it is polite.\n\n", encoding="utf-8")
    settings = yaml.safe_load((tmp_path / "corpus.yaml").read_text(encoding="utf-8"))
    settings["dimensions"]["tone"] = {
        "scale": {"type": "nominal", "labels": ["polite", "rude"]},
        "guideline": "tone.md",
    }
    (tmp_path / "corpus.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    rows = [("one", DIMENSION, 3), ("one", "tone", "rude"), ("two", "tone", "polite")]
    write_jsonl(
        tmp_path / "annotations.jsonl",
        [{"item_id": item, "annotator_id": "ann", "dimension": name, "label": label} for item, name, label in rows],
    )
    corpus = load_corpus(tmp_path)
    assert corpus.annotations(DIMENSION).numbers.tolist() == [2.0]
    assert corpus.annotations("tone").items.tolist() == [0, 1]
    assert corpus.annotations("tone").numbers.tolist() == [1.0, 0.0]
    assert corpus.dimension("tone").scale == NominalScale(labels=("polite", "rude"))
    assert corpus.dimension("tone").guideline == "Say whether it is polite."
    with pytest.raises(ConfigError, match=r"several dimensions; give --dimension, one of: .*tone"):
        corpus.dimension(None)
    with pytest.raises(ConfigError, match=r"--dimension style: not in corpus small; give one of: .*tone"):
        corpus.dimension("style")


def test_items_are_read_in_any_order(tmp_path: Path) -> None:
    texts = {f"item{number}": {"text": f"Überaus lang {number} " * number + "…"} for number in range(1, 30)}
    corpus = small_corpus(tmp_path, {item_id: {"ann": 1} for item_id in texts}, ORDINAL_3, inputs=texts)
    for index in np.random.default_rng(0).permutation(len(texts)).tolist():
        item_id = corpus.item_ids[index]
        assert corpus.item(index) == Item(item_id, texts[item_id], {})


def test_texts_stay_on_disk_until_they_are_asked_for(tmp_path: Path) -> None:
    corpus = small_corpus(tmp_path, LABELS, ORDINAL_3)
    path = tmp_path / "items.jsonl"
    with path.open("r+b") as file:  # in place, after the check
        file.write(path.read_bytes().replace(b"the text of third", b"THE TEXT OF THIRD"))
    assert corpus.item(2).inputs == {"text": "This is THE TEXT OF THIRD."}


def test_blank_lines_byte_order_mark_and_windows_line_ends_are_no_obstacle(tmp_path: Path) -> None:
    write_corpus(tmp_path, LABELS, ORDINAL_3)
    path = tmp_path / "items.jsonl"
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\xef\xbb\xbf" + lines[0] + b"\r\n\r\n" + lines[1] + b"\r\n  \n" + lines[2])
    corpus = load_corpus(tmp_path)
    assert [corpus.item(index).item_id for index in range(3)] == ["first", "second", "third"]


def test_metadata_may_be_left_out(tmp_path: Path) -> None:
    write_corpus(tmp_path, LABELS, ORDINAL_3)
    write_jsonl(tmp_path / "items.jsonl", [{"item_id": item_id, "inputs": {"text": item_id}} for item_id in LABELS])
    assert load_corpus(tmp_path).item(1) == Item("second", {"text": "second"}, {})


def test_items_of_one_group_share_a_code(tmp_path: Path) -> None:
    labels = {name: {"ann": 1} for name in "abcd"}
    corpus = small_corpus(tmp_path, labels, ORDINAL_3, groups={"a": "x", "b": "y", "c": "x", "d": "z"})
    assert corpus.group_by == "metadata.group"
    codes = corpus.groups.tolist()
    assert codes[0] == codes[2]
    assert len(set(codes)) == 3


def test_a_group_may_be_an_input_field(tmp_path: Path) -> None:
    inputs = {name: {"text": name, "topic": topic} for name, topic in zip("abc", ("x", "y", "x"), strict=True)}
    write_corpus(tmp_path, {name: {"ann": 1} for name in "abc"}, ORDINAL_3, inputs=inputs)
    settings = yaml.safe_load((tmp_path / "corpus.yaml").read_text(encoding="utf-8"))
    (tmp_path / "corpus.yaml").write_text(yaml.safe_dump({**settings, "group_by": "inputs.topic"}), encoding="utf-8")
    codes = load_corpus(tmp_path).groups.tolist()
    assert codes[0] == codes[2] != codes[1]


def test_groups_that_share_an_item_with_the_same_inputs_become_one(tmp_path: Path) -> None:
    """Two of x and y are the same, two of y and z are: x, y and z are one group; w is another."""
    texts = {"a": "same", "b": "other", "c": "same", "d": "twin", "e": "twin", "f": "alone"}
    groups = {"a": "x", "b": "x", "c": "y", "d": "y", "e": "z", "f": "w"}
    inputs = {name: {"text": text} for name, text in texts.items()}
    corpus = small_corpus(tmp_path, {name: {} for name in "bcdef"} | {"a": {"ann": 1}}, inputs=inputs, groups=groups)
    code = dict(zip(corpus.item_ids, corpus.groups.tolist(), strict=True))
    assert len({code[name] for name in "abcde"}) == 1
    assert code["f"] != code["a"]


def test_duplicates_join_also_where_items_stand_alone_whatever_the_order_of_fields(tmp_path: Path) -> None:
    inputs = {"a": {"text": "x", "title": "y"}, "b": {"text": "y", "title": "x"}, "c": {"title": "y", "text": "x"}}
    corpus = small_corpus(tmp_path, {"a": {"ann": 1}, "b": {}, "c": {}}, inputs=inputs)
    codes = corpus.groups.tolist()
    assert codes[0] == codes[2] != codes[1]
    assert sorted(set(codes)) == [0, 1]


def test_the_demo_corpus_is_found_by_name_unless_a_folder_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert (find_corpus("demo") / "corpus.yaml").is_file()
    assert len(load_corpus(find_corpus("demo")).item_ids) == 384
    (tmp_path / "demo").mkdir()  # the folder of a run, say
    assert find_corpus("demo") != Path("demo")
    (tmp_path / "demo" / "corpus.yaml").touch()
    assert find_corpus("demo") == Path("demo")
    with pytest.raises(DataError, match="corpus nowhere: no such folder"):
        find_corpus("nowhere")


def test_an_error_says_where_what_and_what_to_do(tmp_path: Path) -> None:
    write_corpus(tmp_path, {"a": {"ann": 1, "bob": 7}}, ORDINAL_3)
    with pytest.raises(
        DataError,
        match=r"^corpus small: annotations\.jsonl line 2: label 7 is not on scale 1\.\.3; "
        r"fix the line or the scale in corpus\.yaml$",
    ):
        load_corpus(tmp_path)


def test_a_second_label_by_one_annotator_names_both_lines(tmp_path: Path) -> None:
    write_corpus(tmp_path, LABELS, ORDINAL_3)
    path = tmp_path / "annotations.jsonl"
    again = {"item_id": "first", "annotator_id": "bob", "dimension": DIMENSION, "label": 1}
    path.write_text(path.read_text(encoding="utf-8") + json.dumps(again) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"line 4: annotator 'bob' labelled item 'first' .* in line 2"):
        load_corpus(tmp_path)


def test_a_pairwise_item_without_one_of_its_texts_is_named(tmp_path: Path) -> None:
    inputs = {"a": {"left": "x", "right": "y"}, "b": {"left": "x"}}
    write_corpus(tmp_path, {"a": {"ann": "A"}, "b": {}}, PAIRWISE, inputs=inputs)
    with pytest.raises(DataError, match=rf"items\.jsonl line 2: no field inputs\.right, .*{DIMENSION}"):
        load_corpus(tmp_path)
