"""Gold labels by the model of Dawid and Skene, with crowd-kit, which is among what tests need."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipelines.import_corpus import STAGE, main
from raters.gold import gold_labels
from tests.places import CHECKOUT
from tests.small_corpora import NOMINAL, small_corpus
from tests.stage_runs import calls_of, leave_the_user, refused_line

ITEMS = 60


def crowd() -> tuple[dict[str, dict[str, str]], list[str]]:
    """Return (labels, truth) of three people who are mostly right and three who answer as they please.

    Those three say `present` whatever they see, so that a majority is often wrong and often undecided.
    """
    chooser = np.random.default_rng(5)
    truth = [str(chooser.choice(NOMINAL["labels"])) for _ in range(ITEMS)]
    other = dict(zip(NOMINAL["labels"], reversed(NOMINAL["labels"]), strict=True))
    labels = {}
    for number, right in enumerate(truth):
        said = {f"careful{n}": right if chooser.random() < 0.95 else other[right] for n in range(3)}
        labels[f"i{number:02}"] = said | {f"careless{n}": "present" for n in range(3)}
    return labels, truth


def test_it_sees_through_people_who_answer_as_they_please(tmp_path: Path) -> None:
    labels, truth = crowd()
    corpus = small_corpus(tmp_path / "c", labels, NOMINAL)
    gold = gold_labels(corpus, "quality", "dawid-skene")
    numbers = np.array([NOMINAL["labels"].index(right) for right in truth])
    assert gold.items.tolist() == list(range(ITEMS))
    assert (gold.numbers == numbers).mean() > 0.95
    majority = gold_labels(corpus, "quality", "majority")
    assert (majority.numbers == numbers[majority.items]).mean() * len(majority) / ITEMS < 0.6
    again = gold_labels(corpus, "quality", "dawid-skene")
    assert again.numbers.tolist() == gold.numbers.tolist()


def test_import_corpus_writes_its_labels(tmp_path: Path) -> None:
    labels, _ = crowd()
    rows = [f"{item},Text of {item}.,{who},{label}" for item, said in labels.items() for who, label in said.items()]
    (tmp_path / "x.csv").write_text("id,text,worker,label\n" + "\n".join(rows) + "\n")
    command = [sys.executable, "-m", "pipelines.import_corpus", str(tmp_path / "x.csv"), "--gold", "dawid-skene"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "c")], cwd=CHECKOUT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert f"dawid-skene, {ITEMS} items and {ITEMS} labels are left" in done.stdout
    assert (tmp_path / "c" / "annotations.jsonl").read_text().count('"annotator_id": "gold-dawid-skene"') == ITEMS


def test_a_scale_without_a_list_of_labels_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    leave_the_user(tmp_path, monkeypatch)
    run = calls_of(STAGE, main, monkeypatch, capsys)
    (tmp_path / "x.csv").write_text("id,text,worker,label\na,A text.,k,1.5\nb,B text.,k,70.25\n")
    refused_line(run, tmp_path, "x.csv", "--gold", "dawid-skene", "--out", "c", names=["dawid-skene", "0..100"])


def test_without_crowd_kit_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    leave_the_user(tmp_path, monkeypatch)
    monkeypatch.setitem(sys.modules, "crowdkit.aggregation", None)  # as if it were not installed
    run = calls_of(STAGE, main, monkeypatch, capsys)
    (tmp_path / "x.csv").write_text("id,text,worker,label\na,A text.,k,1\nb,B text.,k,2\n")
    refused_line(run, tmp_path, "x.csv", "--gold", "dawid-skene", "--out", "c", names=["crowd-kit", "[dawid-skene]"])
