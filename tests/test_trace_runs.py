"""A finished run of infer_traces is read as it was made, or refused with one line."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.infer_traces import main as infer
from raters.journal import read_lines
from raters.models.embedded import EmbeddedModel
from raters.records import ConfigError, DataError
from raters.trace_runs import TraceRun, read_draws_of
from tests.small_corpora import ORDINAL_3, PAIRWISE, varied_texts, write_corpus
from tests.small_runs import draw, run_of

ITEMS = 30


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a corpus and a run over it."""
    folder = tmp_path_factory.mktemp("made")
    texts = varied_texts(ITEMS)
    labels = {item_id: {"ann": 1 + n % 3, "bob": 1 + n % 3} for n, item_id in enumerate(texts)}
    write_corpus(folder / "corpus", labels, ORDINAL_3, inputs=texts)
    options = ["--strategy", "fixed", "--k", "5", "--seed", "3", "--split-seed", "2", "--limit", "12"]
    assert infer(["--corpus", str(folder / "corpus"), "--out", str(folder / "run"), *options]) == 0
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """Return a copy that a test may spoil."""
    shutil.copytree(made, tmp_path / "copy")
    return tmp_path / "copy"


def read(folder: Path) -> TraceRun:
    """Read the copy's run with the copy's corpus."""
    return TraceRun.read(folder / "run", str(folder / "corpus"))


def test_a_run_as_it_was_made(made: Path) -> None:
    run = TraceRun.read(made / "run")
    records = [record for _, _, record in read_lines(made / "run" / "candidates.jsonl")]
    assert run.corpus.folder == made / "corpus"
    assert (run.dimension.name, run.dimension.guideline) == ("quality", "Say how good the text is.")
    assert run.split.seed == 2
    assert (run.method, run.gold_method) == ("median", "median")
    assert (run.tolerance, run.settings.temperature, run.settings.max_tokens) == (0.0, 1.0, 4096)
    assert run.generator.question.prompt.name == "embedded/rate"
    assert len(run.order) == 12
    assert {run.corpus.item_ids[item] for item in run.order} == {record["item_id"] for record in records}
    draws = run.draws
    assert len(draws) == len(records) == 60
    assert list(draws.records(range(60))) == records
    assert list(draws.records([7, 2])) == [records[7], records[2]]
    assert [run.corpus.item_ids[item] for item in draws.items] == [record["item_id"] for record in records]
    assert draws.accepted.tolist() == [record["verdict"] == record["label"] for record in records]
    assert (draws.labels + 1).tolist() == [record["label"] for record in records]
    assert (draws.numbers + 1).tolist() == [record["verdict"] for record in records]


def test_the_question_is_the_one_that_was_asked(made: Path) -> None:
    """The rule reader, asked again with the same seed, says the same word for word."""
    run = TraceRun.read(made / "run")
    question = run.question(run.dimension.guideline)
    for record in run.draws.records(range(10)):
        messages = question.about(run.corpus.item(run.corpus.item_ids.index(record["item_id"])))()
        (again,) = asyncio.run(EmbeddedModel().complete(messages, [record["seed"]], run.settings))
        assert again.reasoning == record["trace"]
        assert again.text == record["answer"]
    other = run.question("- length helps twice.\n")
    assert "length helps twice" in other.about(run.corpus.item(0))()[0]["content"]


def test_the_corpus_may_have_moved(folder: Path) -> None:
    assert read(folder).corpus.folder == folder / "corpus"
    shutil.move(folder / "corpus", folder / "elsewhere")
    assert len(TraceRun.read(folder / "run", str(folder / "elsewhere")).draws) == 60
    manifest = json.loads((folder / "run" / "manifest.json").read_text())
    manifest["options"]["corpus"] = str(folder / "corpus")
    (folder / "run" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="no such folder"):
        TraceRun.read(folder / "run")


# --- which draws ------------------------------------------------------------------------------------------


def test_only_draws_of_the_chance_that_is_asked_for(tmp_path: Path) -> None:
    records = [
        draw("a", 0, "One.", 1, 2),
        draw("a", 0, "Two.", 2, 2, chance="escalated"),
        draw("a", 0, "Three.", 2, 2, chance="rationalized", flags=["no_reasoning"]),
        draw("b", 0, "Four.", None, 3, accepted=False),
    ]
    run = run_of(tmp_path, records, {"a": 2, "b": 3})
    assert [one["trace"] for one in run.draws.records(range(len(run.draws)))] == ["One.", "Four."]
    assert np.isnan(run.draws.numbers[1])
    assert run.draws.labels.tolist() == [1, 2]
    other = read_draws_of(run.draws.path, run.corpus, run.dimension, "rationalized")
    assert [one["trace"] for one in other.records(range(len(other)))] == ["Three."]
    assert other.doubtful.tolist() == [True]
    assert len(read_draws_of(run.draws.path, run.corpus, run.dimension, "escalated")) == 1


def test_no_draws_of_a_chance(tmp_path: Path) -> None:
    run = run_of(tmp_path, [draw("a", 0, "One.", 1, 2)], {"a": 2})
    none = read_draws_of(run.draws.path, run.corpus, run.dimension, "rationalized")
    assert len(none) == 0
    assert none.items.dtype == np.int64


def test_labels_of_several_people_are_a_line_each(tmp_path: Path) -> None:
    records = [draw("a", 0, "One.", "A", label, annotator_id=who) for who, label in (("x", "A"), ("y", "tie"))]
    run = run_of(tmp_path, records, {"a": "A"}, PAIRWISE, inputs={"a": {"left": "l", "right": "r"}})
    assert run.draws.accepted.tolist() == [True, False]
    assert run.draws.labels.tolist() == [0, 2]


# --- what is refused --------------------------------------------------------------------------------------


def change(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    record = json.loads(path.read_text())
    edit(record)
    path.write_text(json.dumps(record))


def append(name: str, text: str) -> Callable[[Path], object]:
    def do(folder: Path) -> None:
        with (folder / "corpus" / name).open("a") as file:
            file.write(text)

    return do


def manifest(edit: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    return lambda folder: change(folder / "run" / "manifest.json", edit)


SPOILT: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (lambda folder: shutil.rmtree(folder / "run"), r"holds no manifest\.json"),
    "no manifest": (lambda folder: (folder / "run" / "manifest.json").unlink(), r"holds no manifest\.json"),
    "empty manifest": (lambda folder: (folder / "run" / "manifest.json").write_text(""), "cannot be read"),
    "manifest is a list": (lambda folder: (folder / "run" / "manifest.json").write_text("[]"), "cannot be read"),
    "manifest is a number": (lambda folder: (folder / "run" / "manifest.json").write_text("7"), "cannot be read"),
    "manifest is a folder": (
        lambda folder: ((folder / "run" / "manifest.json").unlink(), (folder / "run" / "manifest.json").mkdir()),
        "cannot be read",
    ),
    "manifest is no text": (
        lambda folder: (folder / "run" / "manifest.json").write_bytes(b"\xff\xfe{}"), "cannot be read"
    ),
    "another stage": (manifest(lambda record: record.update(stage="rate_items")), "is a run of 'rate_items'"),
    "running": (manifest(lambda record: record.update(status="running")), "its run is 'running'; finish it"),
    "stopped": (manifest(lambda record: record.update(status="stopped")), "its run is 'stopped'"),
    "no options": (manifest(lambda record: record.pop("options")), "is a run of"),
    "options are a list": (manifest(lambda record: record.update(options=[])), "cannot be read"),
    "options without split": (manifest(lambda record: record["options"].pop("split")), "options without split"),
    "identity without prompt": (manifest(lambda record: record["identity"].pop("prompt")), "identity without prompt"),
    "inputs without hashes": (
        manifest(lambda record: record["inputs_sha256"].update({"items.jsonl": None})), "without hashes"
    ),
    "no generator": (lambda folder: (folder / "run" / "rater.yaml").unlink(), "no such file"),
    "another generator": (
        manifest(lambda record: record["identity"].update(guideline="0" * 64)), "is not the one the traces are of"
    ),
    "items changed": (
        append("items.jsonl", '{"item_id": "new", "inputs": {"question": "q", "reply": "r"}}\n'),
        r"items\.jsonl of corpus small is not the file",
    ),
    "labels changed": (
        append(
            "annotations.jsonl",
            '{"item_id": "item000", "annotator_id": "x", "dimension": "quality", "label": 2}\n',
        ),
        r"annotations\.jsonl of corpus small is not the file",
    ),
    "corpus.yaml changed": (append("corpus.yaml", "# note\n"), r"corpus\.yaml of corpus small is not the file"),
}  # fmt: skip


@pytest.mark.parametrize("name", SPOILT)
def test_a_folder_that_is_no_finished_run(folder: Path, name: str) -> None:
    spoil, message = SPOILT[name]
    spoil(folder)
    with pytest.raises(DataError, match=message) as error:
        read(folder)
    assert "\n" not in str(error.value)


def test_a_file_in_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError):
        TraceRun.read(tmp_path / "file")


@pytest.mark.parametrize("split", ["all", "dev", "test"])
def test_draws_that_were_not_made_on_the_train_split(folder: Path, split: str) -> None:
    change(folder / "run" / "manifest.json", lambda record: record["options"].update(split=split))
    with pytest.raises(ConfigError, match=f"was inferred on the {split} split"):
        read(folder)


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        ({"item_id": "unknown"}, "KeyError"),
        ({"dimension": "fluency"}, "dimension 'fluency'"),
        ({"verdict": 9}, "label 9 is not on scale"),
        ({"label": "2"}, "is not on scale"),
        ({"trace": None}, "is not a candidate"),
        ({"flags": ...}, "KeyError: 'flags'"),
        ({"chance": ...}, "KeyError: 'chance'"),
    ],
)
def test_a_line_that_is_no_candidate(tmp_path: Path, edit: dict[str, Any], reason: str) -> None:
    spoilt = {name: value for name, value in {**draw("a", 1, "One.", 1, 2), **edit}.items() if value is not ...}
    run = run_of(tmp_path, [draw("a", 0, "One.", 1, 2), spoilt], {"a": 2})
    with pytest.raises(DataError, match=rf"candidates\.jsonl line 2: .*{reason}"):
        _ = run.draws


def test_draws_of_an_item_that_is_held_out(folder: Path) -> None:
    run = read(folder)
    held_out = run.corpus.item_ids[int(run.split.indices("test")[0])]
    path = folder / "run" / "candidates.jsonl"
    first = json.loads(path.read_text().splitlines()[0])
    append_line = json.dumps({**first, "item_id": held_out}) + "\n"
    path.write_text(path.read_text() + append_line)
    with pytest.raises(DataError, match=f"{held_out}.*not in the train split"):
        _ = run.draws


def test_no_candidates(folder: Path) -> None:
    (folder / "run" / "candidates.jsonl").unlink()
    with pytest.raises(DataError, match="no such file"):
        _ = read(folder).draws
