"""import_corpus on tables made of three public corpora, which are not part of the project; run with `-m real_corpora`.

What comes back has to be what went in: the same texts, the same labels of the same people, the same groups.
"""

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from raters.corpora import Corpus, load_corpus
from tests.places import CORPORA

pytestmark = [pytest.mark.real_corpora, pytest.mark.timeout(300)]


def import_corpus(source: Path, out: Path, *flags: str) -> dict[str, Any]:
    """Run the stage as a user does and return its summary."""
    command = [sys.executable, "-m", "pipelines.import_corpus", str(source), "--out", str(out), *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return found


def labels_of(corpus: Corpus, dimension: str) -> set[tuple[str, str, object]]:
    table, scale = corpus.annotations(dimension), corpus.dimensions[dimension].scale
    return {
        (corpus.item_ids[item], corpus.annotator_ids[who], scale.label(number))
        for item, who, number in zip(table.items, table.annotators, table.numbers, strict=True)
    }


def test_long_form_of_argument_quality(tmp_path: Path) -> None:
    original = load_corpus(CORPORA / "argquality_novice")
    with (tmp_path / "answers.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=";")
        writer.writerow(["nr", "debate", "stance", "the argument", "quality", "student", "how good"])
        for dimension in ("clarity", "credibility"):
            for item_id, who, label in sorted(labels_of(original, dimension), key=str):
                inputs = original.item(original.item_ids.index(item_id)).inputs
                writer.writerow([item_id, *list(inputs.values())[:3], dimension, who, label])
    flags = ["--item", "nr", "--annotator", "student", "--label", "how good", "--dimension-column", "quality"]
    summary = import_corpus(tmp_path / "answers.csv", tmp_path / "c", *flags, "--group-by", "debate")
    found = load_corpus(tmp_path / "c")
    for dimension in ("clarity", "credibility"):
        assert labels_of(found, dimension) == labels_of(original, dimension)
    assert len(set(found.groups.tolist())) == len(set(original.groups.tolist()))
    # As the corpus's own README has them.
    alpha = {each["dimension"]: round(each["alpha"]["value"], 3) for each in summary["quality"]["dimensions"]}
    assert alpha == {"clarity": 0.131, "credibility": 0.178}


def test_wide_form_of_realsumm(tmp_path: Path) -> None:
    original = load_corpus(CORPORA / "realsumm")
    by_item: dict[str, dict[str, object]] = {}
    for item_id, who, label in labels_of(original, "present"):
        by_item.setdefault(item_id, {})[who] = label
    with (tmp_path / "wide.tsv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="\t")
        writer.writerow(["id", "text", "statement", "document", "rater_1", "rater_2", "rater_3", "rater_4"])
        for index, item_id in enumerate(original.item_ids):
            item = original.item(index)
            slots = [by_item[item_id].get(f"slot{number}", "") for number in range(1, 5)]
            row = [item_id, item.inputs["text"], item.inputs["statement"], item.metadata["document"]]
            writer.writerow([*row, *slots])
    summary = import_corpus(tmp_path / "wide.tsv", tmp_path / "c", "--group-by", "document")
    found = load_corpus(tmp_path / "c")
    renamed = {(item, f"rater_{who[-1]}", label) for item, who, label in labels_of(original, "present")}
    assert labels_of(found, "quality") == renamed
    assert found.content.tolist() == original.content.tolist()
    assert found.groups.tolist() == original.groups.tolist()
    assert round(summary["quality"]["dimensions"][0]["alpha"]["value"], 2) == 0.74


def test_pairs_with_reasons_of_ukpconvarg1(tmp_path: Path) -> None:
    original = load_corpus(CORPORA / "ukpconvarg1")
    reasons: dict[tuple[str, str], str] = {}
    for line in (CORPORA / "ukpconvarg1" / "rationales.jsonl").open(encoding="utf-8"):
        record = json.loads(line)
        reasons[record["item_id"], record["annotator_id"]] = record["rationale"]
    with (tmp_path / "pairs.jsonl").open("w", encoding="utf-8") as file:
        for item_id, who, label in sorted(labels_of(original, "more_convincing")):
            inputs = original.item(original.item_ids.index(item_id)).inputs
            row = {"pair_id": item_id, **inputs, "worker": who, "label": label, "rationale": reasons[item_id, who]}
            file.write(json.dumps(row) + "\n")
    import_corpus(tmp_path / "pairs.jsonl", tmp_path / "c", "--group-by", "topic", "--dimension", "more_convincing")
    found = load_corpus(tmp_path / "c")
    assert labels_of(found, "more_convincing") == labels_of(original, "more_convincing")
    assert found.dimensions["more_convincing"].scale == original.dimensions["more_convincing"].scale
    lines = (tmp_path / "c" / "rationales.jsonl").read_text(encoding="utf-8").splitlines()
    written = {(r["item_id"], r["annotator_id"]): r["rationale"] for r in map(json.loads, lines)}
    assert written == {key: reason for key, reason in reasons.items() if reason.strip()}
