"""import_corpus: what it understands of tables, what it says, and the corpus it leaves."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.import_corpus import STAGE, main
from raters.corpora import load_corpus
from tests.stage_runs import Run, calls_of, leave_the_user, read, refused_line, snapshot
from tests.test_import_bad_input import parquet

LONG = """\
story,class,who,when,mark
s1,The dog ran away.,eva,09:00,2
s1,The dog ran away.,kim,09:05,3
s2,"The cat, ""Tom"", slept.",eva,09:10,1
s2,"The cat, ""Tom"", slept.",kim,09:15,NA
s3,It rained all day long.,eva,09:20,
"""
AS_LONG = ["--item", "story", "--text", "class", "--annotator", "who", "--label", "mark"]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    leave_the_user(tmp_path, monkeypatch)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return calls_of(STAGE, main, monkeypatch, capsys)


def settings(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((folder / "corpus.yaml").read_text())
    return found


def scale(folder: Path, dimension: str) -> dict[str, Any]:
    found: dict[str, Any] = settings(folder)["dimensions"][dimension]["scale"]
    return found


def said(folder: Path) -> set[tuple[str, str, str, Any]]:
    """Return (item, annotator, dimension, label) of every annotation of a corpus that loads."""
    load_corpus(folder)
    return {tuple(record.values()) for record in read(folder / "annotations.jsonl")}


def test_long_form_with_columns_by_flags(run: Run, tmp_path: Path) -> None:
    (tmp_path / "answers.csv").write_text(LONG)
    (tmp_path / "told.md").write_text("Rate it.\n")
    printed = run("answers.csv", *AS_LONG, "--dimension", "tone", "--guideline", "told.md", "--out", "corpus").out
    corpus = tmp_path / "corpus"
    assert read(corpus / "items.jsonl") == [
        {"item_id": "s1", "inputs": {"class": "The dog ran away."}, "metadata": {}},
        {"item_id": "s2", "inputs": {"class": 'The cat, "Tom", slept.'}, "metadata": {}},
        {"item_id": "s3", "inputs": {"class": "It rained all day long."}, "metadata": {}},
    ]
    assert said(corpus) == {("s1", "eva", "tone", 2), ("s1", "kim", "tone", 3), ("s2", "eva", "tone", 1)}
    assert settings(corpus) == {
        "name": "corpus",
        "dimensions": {"tone": {"scale": {"type": "ordinal", "labels": [1, 2, 3]}, "guideline": "guidelines/tone.md"}},
    }
    assert (corpus / "guidelines" / "tone.md").read_text() == "Rate it.\n"
    for line in (
        "items           3 of class, 1 of them without any label",
        "annotators      2: eva, kim",
        "labels          3 on tone",
        "missing labels  2 on tone",
        "1 of 2 items have one annotator",
        "differ between rows of one item: 'when'",
        "scale of tone: ordinal 1..3, guessed",
    ):
        assert line in printed
    manifest = json.loads((corpus / "manifest.json").read_text())
    assert manifest["options"]["label"] == ["mark"]
    assert list(manifest["inputs_sha256"]) == ["answers.csv"]


def test_a_dry_run_says_the_same_and_writes_nothing(run: Run, tmp_path: Path) -> None:
    (tmp_path / "answers.csv").write_text(LONG)
    before = snapshot(tmp_path)
    dry = run("answers.csv", *AS_LONG, "--name", "corpus", "--dry-run").out.splitlines()
    assert snapshot(tmp_path) == before
    wet = run("answers.csv", *AS_LONG, "--out", "corpus").out.splitlines()
    assert dry[:-1] == wet[:-1]
    assert dry[-1] == "Nothing was written (--dry-run)."
    assert any("No guideline given for mark" in line for line in dry)


def test_columns_are_guessed_where_names_leave_no_doubt(run: Run, tmp_path: Path) -> None:
    rows = "Item ID\tPrompt\tResponse\tSystem\tWorker-ID\tRating\n" + "".join(
        f"i{n}\tWhat is {n}?\tIt is a number.\tbig\tw{worker}\t{1 + (n + worker) % 4}\n"
        for n in range(3)
        for worker in range(2)
    )
    (tmp_path / "x.tsv").write_text(rows)
    printed = run("x.tsv", "--out", "corpus").out
    assert read(tmp_path / "corpus" / "items.jsonl")[0] == {
        "item_id": "i0",
        "inputs": {"Prompt": "What is 0?", "Response": "It is a number."},
        "metadata": {"System": "big"},
    }
    assert ("i2", "w1", "Rating", 4) in said(tmp_path / "corpus")
    for column, role in (("Item ID", "item"), ("Worker-ID", "annotator"), ("Rating", "label")):
        assert any(f"'{column}'" in line and f"(--{role})" in line for line in printed.splitlines())


def test_wide_form(run: Run, tmp_path: Path) -> None:
    (tmp_path / "wide.csv").write_text("id;text;topic;rater_1;rater_2\n1;One text.;a;yes;no\n2;Two texts.;b;Yes;\n")
    run("wide.csv", "--dimension", "fair", "--group-by", "topic", "--out", "corpus")
    assert said(tmp_path / "corpus") == {
        ("1", "rater_1", "fair", "yes"),
        ("1", "rater_2", "fair", "no"),
        ("2", "rater_1", "fair", "yes"),
    }
    assert settings(tmp_path / "corpus")["group_by"] == "metadata.topic"
    assert scale(tmp_path / "corpus", "fair") == {"type": "nominal", "labels": ["no", "yes"]}


WIDE = """\
id,text,clarity_rater1,tone_rater1,comment_rater1,clarity_rater2,tone_rater2,comment_rater2
a,One text.,1,kind,I think that it is not clear to anyone.,2,rude,Nobody will understand this one at all.
b,Two texts.,3,rude,This one is as clear as glass to me here.,,kind,I have no idea what this is about either.
"""
WIDE_SAID = {
    ("a", "rater1", "clarity", 1),
    ("a", "rater2", "clarity", 2),
    ("b", "rater1", "clarity", 3),
    ("a", "rater1", "tone", "kind"),
    ("a", "rater2", "tone", "rude"),
    ("b", "rater1", "tone", "rude"),
    ("b", "rater2", "tone", "kind"),
}


def test_wide_form_of_several_dimensions(run: Run, tmp_path: Path) -> None:
    (tmp_path / "wide.csv").write_text(WIDE)
    printed = run("wide.csv", "--out", "guessed").out
    assert (
        "columns such as 'clarity_rater1' are the labels of rater1, rater2 on clarity, tone (--annotators)" in printed
    )
    assert "since annotators wrote them: 'comment_rater1', 'comment_rater2'" in printed
    run("wide.csv", "--annotators", "{}_rater1", "{}_rater2", "--dimension", "clarity", "tone", "--out", "told")
    for folder in ("guessed", "told"):
        assert said(tmp_path / folder) == WIDE_SAID
        # What annotators wrote is about the label: no rater may see it.
        assert read(tmp_path / folder / "items.jsonl")[0] == {"item_id": "a", "inputs": {"text": "One text."},
                                                              "metadata": {}}  # fmt: skip
    turned = WIDE.replace("clarity_rater1,tone_rater1", "Eva: clarity,Eva: tone").replace(
        "clarity_rater2,tone_rater2", "Kim: clarity,Kim: tone"
    )
    (tmp_path / "turned.csv").write_text(turned)
    run("turned.csv", "--text", "text", "--annotators", "Eva: {}", "Kim: {}", "--out", "turned")
    names = {"rater1": "Eva", "rater2": "Kim"}
    assert said(tmp_path / "turned") == {(item, names[who], about, label) for item, who, about, label in WIDE_SAID}


def test_wide_columns_that_could_be_read_two_ways_are_not_guessed(run: Run, tmp_path: Path) -> None:
    (tmp_path / "gap.csv").write_text(
        "id,text,tone_rater1,tone_rater2,depth_rater1\na,A text.,1,2,3\nb,B text.,2,3,1\n"
    )
    refused_line(run, tmp_path, "gap.csv", "--out", "c", names=["no column is called label", "--annotators"])
    run("gap.csv", "--annotators", "{}_rater1", "{}_rater2", "--out", "corpus")
    assert ("a", "rater1", "depth", 3) in said(tmp_path / "corpus")


def test_what_spreadsheets_leave_is_passed_over(run: Run, tmp_path: Path) -> None:
    """Excel writes `sep=;`, empty columns at the end, and rows of nothing below the last one."""
    rows = "id;text;worker;label;;\na;A text.;k;1;;\na;A text.;m;2;;\n;;;;;\nb;B text.;k;3;;\n;;;;;\n ; ;;;;\n"
    (tmp_path / "x.csv").write_text("sep=;\r\n" + rows)
    run("x.csv", "--out", "corpus")
    assert said(tmp_path / "corpus") == {("a", "k", "label", 1), ("a", "m", "label", 2), ("b", "k", "label", 3)}
    assert [item["metadata"] for item in read(tmp_path / "corpus" / "items.jsonl")] == [{}, {}]
    (tmp_path / "y.csv").write_text("sep=;\n" + rows + "c;C text.;k\n")
    refused_line(run, tmp_path, "y.csv", "--out", "new", names=["y.csv row 9:", "3 cells", "header 6"])


def test_several_dimensions_in_columns_and_in_rows(run: Run, tmp_path: Path) -> None:
    (tmp_path / "columns.csv").write_text(
        "id,text,coder,tone,depth\na,A text.,k,1,low\nb,B text.,k,3,high\nc,C text.,k,2,medium\n"
    )
    run("columns.csv", "--label", "tone", "depth", "--out", "columns")
    assert said(tmp_path / "columns") >= {("a", "k", "tone", 1), ("a", "k", "depth", "low")}
    assert scale(tmp_path / "columns", "depth") == {"type": "ordinal", "labels": ["low", "medium", "high"]}
    (tmp_path / "rows.jsonl").write_text(
        "".join(
            json.dumps({"id": "a", "text": "A text.", "coder": coder, "dimension": name, "score": score}) + "\n"
            for coder, name, score in (("k", "tone", 1), ("m", "tone", 3), ("k", "depth", 0.25), ("m", "depth", 0.5))
        )
    )
    run("rows.jsonl", "--out", "rows", "--scale", "tone=1..5", "depth=interval:0..1")
    assert said(tmp_path / "rows") == {
        ("a", "k", "tone", 1),
        ("a", "m", "tone", 3),
        ("a", "k", "depth", 0.25),
        ("a", "m", "depth", 0.5),
    }
    assert scale(tmp_path / "rows", "tone")["labels"] == [1, 2, 3, 4, 5]
    run("rows.jsonl", "--dimension", "tone", "depth", "--out", "both")
    run("rows.jsonl", "--dimension", "tone", "--out", "one")
    assert [*settings(tmp_path / "one")["dimensions"]] == ["tone"]


def test_labels_apart_from_texts(run: Run, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("item,annotator,label\nx,a,1\ny,a,2\nx,b,2\n")
    (tmp_path / "texts.jsonl").write_text(
        '{"item": "x", "prompt": "Why so?", "source": "web"}\n{"item": "y", "prompt": "How so?", "source": "web"}\n'
    )
    run("labels.csv", "--items", "texts.jsonl", "--out", "corpus")
    assert read(tmp_path / "corpus" / "items.jsonl")[0] == {
        "item_id": "x",
        "inputs": {"prompt": "Why so?"},
        "metadata": {"source": "web"},
    }
    (tmp_path / "labels.csv").write_text("item,annotator,label\nx,a,1\nz,a,2\n")
    refused_line(
        run, tmp_path, "labels.csv", "--items", "texts.jsonl", "--out", "other", names=["row 3", "'z'", "--items"]
    )


def test_pairs(run: Run, tmp_path: Path) -> None:
    rows = [("p1", "k", "A"), ("p1", "m", "tie"), ("p2", "k", "B")]
    (tmp_path / "pairs.jsonl").write_text(
        "".join(
            json.dumps(
                {
                    "pair_id": p,
                    "question": "Why so?",
                    "reply_a": f"First of {p}.",
                    "reply_b": "Second.",
                    "user": u,
                    "label": v,
                }
            )
            + "\n"
            for p, u, v in rows
        )
    )
    run("pairs.jsonl", "--dimension", "better", "--out", "corpus")
    expected = {"type": "pairwise", "labels": ["A", "B", "tie"], "fields": ["reply_a", "reply_b"]}
    assert scale(tmp_path / "corpus", "better") == expected
    assert said(tmp_path / "corpus") == {(p, u, "better", v) for p, u, v in rows}
    (tmp_path / "left.csv").write_text("id,left,right,rating\n1,One text.,Another.,one\n2,Third text.,Fourth.,two\n")
    run("left.csv", "--pair", "left", "right", "--scale", "pairwise:one,two", "--out", "named")
    assert scale(tmp_path / "named", "rating")["fields"] == ["left", "right"]
    assert read(tmp_path / "corpus" / "items.jsonl")[0]["inputs"]["question"] == "Why so?"
    run("pairs.jsonl", "--pair", "reply_b", "reply_a", "--scale", "pairwise:B,A,tie", "--out", "exchanged")
    assert scale(tmp_path / "exchanged", "label")["fields"] == ["reply_b", "reply_a"]
    assert "question" in read(tmp_path / "exchanged" / "items.jsonl")[0]["inputs"]


def test_pairs_of_an_arena(run: Run, tmp_path: Path) -> None:
    """As LMSYS publishes them: turns as lists, a winner, and two kinds of tie."""
    winners = ["model_a", "tie (bothbad)", "Tie", "model_b", "TIE (bothbad)"]
    turns = [
        [{"role": "user", "content": "Why is it so?"}, {"role": "assistant", "content": f"By {n}."}] for n in range(9)
    ]
    lines = [
        {"question_id": f"q{n}", "model_a": "x", "model_b": "y", "winner": winner, "judge": "arena_user_1",
         "conversation_a": turns[n], "conversation_b": turns[n + 1], "turn": 1, "language": "English"}
        for n, winner in enumerate(winners)
    ]  # fmt: skip
    (tmp_path / "arena.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    printed = run("arena.jsonl", "--out", "corpus").out
    assert "model_a is for conversation_a, model_b for conversation_b; 'Tie' and 'tie (bothbad)' are one tie" in printed
    assert scale(tmp_path / "corpus", "winner") == {
        "type": "pairwise", "labels": ["model_a", "model_b", "Tie"], "fields": ["conversation_a", "conversation_b"]
    }  # fmt: skip
    assert said(tmp_path / "corpus") == {
        (f"q{n}", "arena_user_1", "winner", label)
        for n, label in enumerate(["model_a", "Tie", "Tie", "model_b", "Tie"])
    }
    # Which model wrote a text tells who won elsewhere: no rater sees it.
    assert read(tmp_path / "corpus" / "items.jsonl")[0]["inputs"] == {
        "conversation_a": "user: Why is it so?\n\nassistant: By 0.",
        "conversation_b": "user: Why is it so?\n\nassistant: By 1.",
    }


def test_rationales_stay_apart(run: Run, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("id,text,coder,label,rationale\na,A text.,k,1,Too short.\nb,B text.,k,2,\n")
    run("x.csv", "--out", "corpus")
    assert read(tmp_path / "corpus" / "rationales.jsonl") == [
        {"item_id": "a", "annotator_id": "k", "dimension": "label", "rationale": "Too short."}
    ]
    assert "Too short" not in (tmp_path / "corpus" / "items.jsonl").read_text()


def test_reasons_of_people_are_told_from_texts_by_their_name(run: Run, tmp_path: Path) -> None:
    """A rater that sees why a person gave a label has been told the label."""
    rows = "".join(f"{n},What is text number {n}?,I gave {n % 3} since it is poor.,{n % 3}\n" for n in range(6))
    (tmp_path / "x.csv").write_text("id,text,explanation,label\n" + rows)
    assert (
        "column 'explanation' is people's own reasons, which no rater sees (--rationale)"
        in run("x.csv", "--out", "corpus").out
    )
    item = read(tmp_path / "corpus" / "items.jsonl")[0]
    assert (item["inputs"], item["metadata"]) == ({"text": "What is text number 0?"}, {})
    assert read(tmp_path / "corpus" / "rationales.jsonl")[1]["rationale"] == "I gave 1 since it is poor."
    # What is rated may be explanations, as where nothing else is a text, or where somebody says so.
    explained = "".join(f"{n},Rain falls since clouds number {n} are full.,{n % 3}\n" for n in range(6))
    (tmp_path / "y.csv").write_text("id,explanation,label\n" + explained)
    run("y.csv", "--out", "alone")
    run("x.csv", "--text", "text", "explanation", "--out", "told")
    for name, fields in (("alone", ["explanation"]), ("told", ["text", "explanation"])):
        assert list(read(tmp_path / name / "items.jsonl")[0]["inputs"]) == fields


def test_without_ids_the_same_texts_are_one_item(run: Run, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("text,worker,score\nSame text.,a,1\nSame text.,b,2\nOther text.,a,2\n")
    printed = run("x.csv", "--out", "corpus").out
    items = read(tmp_path / "corpus" / "items.jsonl")
    assert [item["inputs"]["text"] for item in items] == ["Same text.", "Other text."]
    assert len(said(tmp_path / "corpus")) == 3
    assert "rows with the same texts are one item" in printed
    (tmp_path / "x.csv").write_text("id,text,worker,score\n1,Same text.,a,1\n2,Same text.,b,2\n3,Other text.,a,2\n")
    printed = run("x.csv", "--out", "rows").out
    assert "if id numbers rows and not items" in printed
    run("x.csv", "--item", "-", "--out", "texts")
    assert len(read(tmp_path / "texts" / "items.jsonl")) == 2


@pytest.mark.parametrize(("choice", "label"), [("first", 1), ("last", 3)])
def test_duplicates(choice: str, label: int, run: Run, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text(
        "id,text,worker,label\na,A text.,k,1\na,A text.,k,1\na,A text.,k,3\nb,B text.,k,2\n"
    )
    printed = run("x.csv", "--duplicates", choice, "--scale", "1..3", "--out", "corpus").out
    assert said(tmp_path / "corpus") == {("a", "k", "label", label), ("b", "k", "label", 2)}
    assert "labels that stood there twice, kept once: 1; labels that lost" in printed


def test_missing_values_are_those_that_are_named(run: Run, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("id,text,worker,label\na,A text.,k,1\nb,B text.,k,?\nc,C text.,k,2\nd,D text.,k,\n")
    printed = run("x.csv", "--missing", "?", "--out", "corpus").out
    assert said(tmp_path / "corpus") == {("a", "k", "label", 1), ("c", "k", "label", 2)}
    assert "missing labels  2 on label" in printed


def test_a_column_named_as_a_keyword_and_formulas_in_texts_are_texts(run: Run, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text('id,lambda,label\n1,"=HYPERLINK(""http://x"")",3\n2,@SUM(1),4\n')
    printed = run("x.csv", "--text", "lambda", "--out", "corpus").out
    texts = [item["inputs"]["lambda"] for item in read(tmp_path / "corpus" / "items.jsonl")]
    assert texts == ['=HYPERLINK("http://x")', "@SUM(1)"]
    assert "2 texts begin as formulas" in printed


def test_all_options_stand_in_a_file_too(run: Run, tmp_path: Path) -> None:
    (tmp_path / "answers.csv").write_text(LONG)
    (tmp_path / "import.yaml").write_text(
        "source: answers.csv\nitem: story\ntext: [class]\nannotator: who\nlabel: [mark]\nscale: [1..5]\nout: corpus\n"
    )
    run("--config", "import.yaml")
    assert scale(tmp_path / "corpus", "mark")["labels"] == [1, 2, 3, 4, 5]


SCALES = [
    (["1", "2", "5"], {"type": "ordinal", "labels": [1, 2, 3, 4, 5]}),
    (["0", "1", "0"], {"type": "ordinal", "labels": [0, 1]}),
    (["1.0", "2", "3.00"], {"type": "ordinal", "labels": [1, 2, 3]}),
    (["1", "1.5", "2"] * 3, {"type": "ordinal", "labels": [1, 1.5, 2]}),
    (["0.25", "0.5", "1"], {"type": "interval", "min": 0, "max": 1}),
    (["3", "57", "88"], {"type": "interval", "min": 0, "max": 100}),
    (["-200", "3.5", "7"], {"type": "interval", "min": -200, "max": 7}),
    (["Good", "poor", "good", "Excellent"], {"type": "ordinal", "labels": ["poor", "Good", "Excellent"]}),
    (
        ["Strongly agree", "disagree", "neutral"],
        {"type": "ordinal", "labels": ["disagree", "neutral", "Strongly agree"]},
    ),
    (
        ["1 - not at all", "10 - wholly", "2 - hardly"],
        {"type": "ordinal", "labels": ["1 - not at all", "2 - hardly", "10 - wholly"]},
    ),
    (["2", "5 - always", "3", "1 - never"], {"type": "ordinal", "labels": ["1 - never", "2", "3", "5 - always"]}),
    (["80 %", "100 %", "9.5 %"], {"type": "ordinal", "labels": ["9.5 %", "80 %", "100 %"]}),
    (
        ["2024-01-02", "2024-01-01", "2023-05-05"],
        {"type": "nominal", "labels": ["2023-05-05", "2024-01-01", "2024-01-02"]},
    ),
    (["spam", "ham", "ham"], {"type": "nominal", "labels": ["ham", "spam"]}),
    (["true", "false", "true"], {"type": "nominal", "labels": ["false", "true"]}),
]


@pytest.mark.parametrize(("labels", "expected"), SCALES)
def test_scales_that_are_guessed(labels: Sequence[str], expected: dict[str, Any], run: Run, tmp_path: Path) -> None:
    rows = "".join(f"{n},Text number {n}.,{label}\n" for n, label in enumerate(labels))
    (tmp_path / "x.csv").write_text("id,text,label\n" + rows)
    assert "guessed" in run("x.csv", "--out", "corpus").out
    assert scale(tmp_path / "corpus", "label") == expected
    load_corpus(tmp_path / "corpus")


def as_rows(text: str) -> list[dict[str, Any]]:
    names, *rows = [line.split(",") for line in text.strip().splitlines()]
    return [dict(zip(names, row, strict=True)) for row in rows]


PLAIN = "id,text,worker,label\na,A text.,k,1\na,A text.,m,2\nb,B text.,k,3\n"


@pytest.mark.parametrize(
    "form", ["csv", "bom", "cp1252", "utf-16", "gz", "jsonl", "json", "parquet", "folder", "saved"]
)
def test_every_form_of_a_table_makes_the_same_corpus(form: str, run: Run, tmp_path: Path) -> None:
    rows = as_rows(PLAIN)
    path, flags = tmp_path / f"x.{form}", ["--name", "same"]
    if form == "jsonl":
        path.write_text("".join(json.dumps({**row, "label": int(row["label"])}) + "\n" for row in rows))
    elif form == "json":
        path.write_text(json.dumps(rows))
    elif form == "parquet":
        path.write_bytes(parquet({name: [row[name] for row in rows] for name in rows[0]}))
    elif form == "folder":
        path.mkdir()
        (path / "1.csv").write_text("\n".join(PLAIN.splitlines()[:3]) + "\n")
        (path / "2.csv").write_text("\n".join([PLAIN.splitlines()[0], PLAIN.splitlines()[3]]) + "\n")
    elif form == "saved":
        datasets = pytest.importorskip("datasets")
        datasets.DatasetDict({"train": datasets.Dataset.from_list(rows)}).save_to_disk(str(path))
    else:
        path = tmp_path / ("x.csv.gz" if form == "gz" else f"{form}.csv")
        encoding = {"bom": "utf-8-sig", "cp1252": "cp1252", "utf-16": "utf-16"}.get(form, "utf-8")
        content = PLAIN.encode(encoding)
        path.write_bytes(gzip.compress(content) if form == "gz" else content)
        flags += ["--encoding", "cp1252"] if form == "cp1252" else []
    run(path, *flags, "--out", "corpus")
    assert said(tmp_path / "corpus") == {("a", "k", "label", 1), ("a", "m", "label", 2), ("b", "k", "label", 3)}
    assert [item["item_id"] for item in read(tmp_path / "corpus" / "items.jsonl")] == ["a", "b"]


def test_a_data_set_of_the_hub_is_loaded_by_its_id(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No hub is reached here: `load_dataset` is stood in for, by a data set that `datasets` itself has made."""
    datasets = pytest.importorskip("datasets")
    asked = []
    features = datasets.Features(
        {
            "id": datasets.Value("string"),
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["neg", "pos"]),
        }
    )
    rows = [{"id": "a", "text": "A text.", "label": 1}, {"id": "b", "text": "B text.", "label": 0}]
    made = datasets.DatasetDict({"train": datasets.Dataset.from_list(rows, features=features)})

    def load(name: str, subset: str | None) -> Any:
        asked.append((name, subset))
        return made

    monkeypatch.setattr(datasets, "load_dataset", load)
    run("someone/some-labels", "--subset", "english", "--split", "train", "--out", "corpus")
    assert asked == [("someone/some-labels", "english")]
    assert {record[3] for record in said(tmp_path / "corpus")} == {"neg", "pos"}
    refused_line(run, tmp_path, "someone/some-labels", "--split", "dev", "--out", "x", names=["'dev'", "train"])


def test_dates_and_decimals_of_parquet(run: Run, tmp_path: Path) -> None:
    columns: dict[str, list[object]] = {
        "id": [date(2024, 5, 3), date(2024, 5, 4)],
        "text": ["One text.", "Two texts."],
        "day": [date(2024, 5, 3)] * 2,
        "label": [Decimal("1.00"), Decimal("2.00")],
    }
    (tmp_path / "x.parquet").write_bytes(parquet(columns))
    run("x.parquet", "--out", "corpus")
    assert said(tmp_path / "corpus") == {
        ("2024-05-03", "annotator", "label", 1),
        ("2024-05-04", "annotator", "label", 2),
    }
    assert read(tmp_path / "corpus" / "items.jsonl")[0]["metadata"] == {"day": "2024-05-03"}


GOLD = "id,text,worker,label\n" + "".join(
    f"{item},Text {item}.,w{worker},{label}\n"
    for item, labels in {"a": (1, 1, 2), "b": (1, 5, 5), "c": (2, 3), "d": (4,)}.items()
    for worker, label in enumerate(labels)
)
"""Population deviations: a .47, b 1.89, c .5, d 0."""


@pytest.mark.parametrize(
    ("method", "gold"),
    [
        ("median", {"a": 1, "b": 5, "c": 2, "d": 4}),
        ("mean", {"a": 1, "b": 4, "c": 3, "d": 4}),
        ("majority", {"a": 1, "b": 5, "d": 4}),
        ("paper", {"a": 1, "c": 2, "d": 4}),
    ],
)
def test_gold_labels(method: str, gold: dict[str, int], run: Run, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text(GOLD)
    printed = run("x.csv", "--gold", method, "--scale", "1..5", "--out", "corpus").out
    assert said(tmp_path / "corpus") == {(item, f"gold-{method}", "label", label) for item, label in gold.items()}
    assert [item["item_id"] for item in read(tmp_path / "corpus" / "items.jsonl")] == list(gold)
    assert f"{method}, {len(gold)} items and {len(gold)} labels are left" in printed
    assert "median 4, majority 3, mean 4, paper 3" in printed


def test_the_page_shows_labels_and_is_safe(run: Run, tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    rows = "".join(f'{n},"{evil} {n % 4}","<b>w{n % 2}</b>",{2 if n % 2 else 1 + n % 3}\n' for n in range(12))
    (tmp_path / "x.csv").write_text("id,text,worker,label\n" + rows)
    run("x.csv", "--name", "<i>mine</i>\u202e", "--out", "corpus")
    page = (tmp_path / "corpus" / "report.html").read_text()
    assert "<script" not in page
    assert "<b>w1" not in page
    assert "<i>mine" not in page
    assert "\u202e" not in page
    assert "&lt;b&gt;w1&lt;/b&gt;" in page
    assert "default-src 'none'" in page
    # w1 labels 6 items, all of them 2; texts repeat with period 4.
    assert "Never vary (the same label each time): &lt;b&gt;w1&lt;/b&gt;." in page
    assert "Texts of several items: 4; with different labels:" in page
