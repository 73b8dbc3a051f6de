"""The paper's five data sets, from small files of our own in the format that their owners publish."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.import_corpus import STAGE, main
from raters.corpora import load_corpus
from raters.importers.published import PUBLISHED
from tests.stage_runs import Run, calls_of, leave_the_user, read, refused_line
from tests.test_import_corpus import said, scale, settings


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    leave_the_user(tmp_path, monkeypatch)
    return calls_of(STAGE, main, monkeypatch, capsys)


HANNA = """\
Story ID,Prompt,Human,Story,Model,Relevance,Coherence,Empathy,Surprise,Engagement,Complexity,Worker ID,Assignment ID,\
Work time in seconds,Name
0,"A dog, lost.",The human story.,The dog came home.,BertGeneration,4,5,3,1,2,2,W1,A1,60.0,0_BertGeneration
0,"A dog, lost.",The human story.,The dog came home.,BertGeneration,4,4,2,1,1,2,W2,A2,61.0,0_BertGeneration
0,"A dog, lost.",The human story.,The dog came home.,BertGeneration,1,5,5,2,5,2,W3,A3,62.0,0_BertGeneration
1,"A dog, lost.",The human story.,No dog was seen.,GPT,3,3,3,3,3,3,W1,A4,60.0,1_GPT
"""


@pytest.mark.parametrize("delimiter", [",", ";"])
def test_hanna(delimiter: str, run: Run, tmp_path: Path) -> None:
    text = HANNA if delimiter == "," else HANNA.replace(",", ";").replace('"A dog; lost."', "A dog, lost.")
    (tmp_path / "hanna_stories_annotations.csv").write_text(text)
    out = tmp_path / "hanna"
    run("hanna_stories_annotations.csv", "--out", "hanna")
    assert len(said(out)) == 4 * 6
    assert ("0", "W3", "engagement", 5) in said(out)
    assert read(out / "items.jsonl")[0] == {
        "item_id": "0",
        "inputs": {"prompt": "A dog, lost.", "story": "The dog came home."},
        "metadata": {"model": "BertGeneration"},
    }
    assert settings(out)["group_by"] == "inputs.prompt"
    # Deviations: relevance 1.41, coherence .47, empathy 1.25, surprise .47, engagement 1.7, complexity 0.
    printed = run("hanna_stories_annotations.csv", "--gold", "paper", "--out", "paper").out
    gold = {(item, dimension): label for item, _, dimension, label in said(tmp_path / "paper")}
    assert {dimension: label for (item, dimension), label in gold.items() if item == "0"} == {
        "coherence": 5,
        "surprise": 1,
        "complexity": 2,
    }
    assert "engagement: 1 human standard deviation above 1.0" in printed


def summeval(**more: Any) -> dict[str, Any]:
    def rated(*labels: int) -> dict[str, int]:
        return dict(zip(("coherence", "consistency", "fluency", "relevance"), labels, strict=True))

    return {
        "id": "dm-test-8764", "decoded": "paul merson was brought on .",
        "expert_annotations": [rated(2, 1, 4, 2), rated(1, 1, 2, 1), rated(1, 1, 3, 2)],
        "turker_annotations": [rated(3, 4, 4, 3)] * 5, "references": ["Paul Merson came on."], "model_id": "M11",
        "filepath": "cnndm/dailymail/stories/8764.story", "text": "Paul Merson has restarted his row.", **more,
    }  # fmt: skip


def test_summeval(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "model_annotations.aligned.paired.jsonl"
    path.write_text(json.dumps(summeval()) + "\n" + json.dumps(summeval(model_id="M12", decoded="another .")) + "\n")
    run(path, "--dimension", "fluency", "consistency", "--out", "summeval")
    labels = said(tmp_path / "summeval")
    assert len(labels) == 2 * 2 * 3
    assert ("dm-test-8764-M11", "expert_3", "fluency", 3) in labels
    assert settings(tmp_path / "summeval")["group_by"] == "metadata.document"
    assert read(tmp_path / "summeval" / "items.jsonl")[0]["inputs"] == {
        "article": "Paul Merson has restarted his row.",
        "summary": "paul merson was brought on .",
    }
    record = summeval()
    del record["text"]
    path.write_text(json.dumps(record) + "\n")
    refused_line(run, tmp_path, path, "--out", "x", names=["line 1", "no article"])


def test_aes2(run: Run, tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text(
        'essay_id,full_text,score\n000d118,"Many people have ""car"" where they live.\n\nThe end.",3\n000fe60,I am a scientist.,4\n'  # noqa: E501
    )
    run("train.csv", "--gold", "paper", "--out", "aes2")
    assert said(tmp_path / "aes2") == {
        ("000d118", "gold-paper", "holistic", 3),
        ("000fe60", "gold-paper", "holistic", 4),
    }
    assert scale(tmp_path / "aes2", "holistic")["labels"] == [1, 2, 3, 4, 5, 6]


def test_wmt20_has_quotes_that_quote_nothing(run: Run, tmp_path: Path) -> None:
    (tmp_path / "psqm_newstest2020_zhen.tsv").write_text(
        "system\tdoc\tdoc_id\tseg_id\trater\tsource\ttarget\tscore\n"
        'Human-A.0\tchinanews.com.69\t1\t3\trater1\t"他说\t"He said so\t6\n'
        'Human-A.0\tchinanews.com.69\t1\t3\trater2\t"他说\t"He said so\t4\n'
        "OPPO.1422\tchinanews.com.69\t1\t3\trater1\t\"他说\tThat's it\t0\n"
    )
    run("psqm_newstest2020_zhen.tsv", "--out", "wmt")
    item = "Human-A.0-chinanews.com.69-1-3"
    assert said(tmp_path / "wmt") == {
        (item, "rater1", "quality", 6),
        (item, "rater2", "quality", 4),
        ("OPPO.1422-chinanews.com.69-1-3", "rater1", "quality", 0),
    }
    assert read(tmp_path / "wmt" / "items.jsonl")[0]["inputs"] == {"source": '"他说', "translation": '"He said so'}
    assert settings(tmp_path / "wmt")["group_by"] == "metadata.document"


def test_helpsteer2(run: Run, tmp_path: Path) -> None:
    row = {"prompt": "c#", "response": "C# is a language.", "helpfulness": 3, "correctness": 4, "coherence": 4,
           "complexity": 2, "verbosity": 0}  # fmt: skip
    (tmp_path / "train.jsonl").write_text(json.dumps(row) + "\n" + json.dumps({**row, "helpfulness": 1}) + "\n")
    run("train.jsonl", "--dimension", "helpfulness", "--out", "helpsteer2")
    assert said(tmp_path / "helpsteer2") == {
        ("train-1", "supplied", "helpfulness", 3),
        ("train-2", "supplied", "helpfulness", 1),
    }
    assert load_corpus(tmp_path / "helpsteer2").groups.tolist() == [0, 0]


def test_helpsteer2_by_its_id(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No hub is reached here: `load_dataset` is stood in for, by a data set that `datasets` itself has made."""
    datasets = pytest.importorskip("datasets")
    row = {"prompt": "c#", "response": "C# is a language.", "helpfulness": 3, "correctness": 4, "coherence": 4,
           "complexity": 2, "verbosity": 0}  # fmt: skip
    made = {part: datasets.Dataset.from_list([row]) for part in ("train", "validation")}
    monkeypatch.setattr(datasets, "load_dataset", lambda name, subset: datasets.DatasetDict(made))
    printed = run("nvidia/HelpSteer2", "--dimension", "verbosity", "--out", "c").out
    assert "read as helpsteer2" in printed
    assert said(tmp_path / "c") == {(f"{part}-1", "supplied", "verbosity", 0) for part in made}


def test_options_for_columns_are_refused_where_columns_are_known(run: Run, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text(HANNA)
    refused_line(run, tmp_path, "x.csv", "--label", "Surprise", "--out", "x", names=["hanna", "--format table"])
    run("x.csv", "--format", "table", "--label", "Surprise", "--text", "Story", "--out", "x")
    assert ("0", "W3", "Surprise", 2) in said(tmp_path / "x")


@pytest.mark.parametrize("published", PUBLISHED, ids=lambda published: published.name)
def test_every_dimension_has_a_guideline_that_names_every_label(published: Any) -> None:
    for dimension in published.dimensions.values():
        text = published.guideline(dimension)
        for label in published.scale_record()["labels"]:
            assert f"| {label} |" in text
        assert len(text.split()) > 60
