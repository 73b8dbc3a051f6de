"""Whatever is wrong with a source: one line that names file, row and mend, status 2, and nothing written."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import os
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipelines.import_corpus import STAGE, main
from raters.importers.corpus_folder import scratch_folder
from tests.stage_runs import Run, calls_of, leave_the_user, refused_line, run_alone, snapshot

HEADER = "item_id,text,annotator,label\n"
ROW = "a1,A text of some length.,ann1,3\n"
GOOD = HEADER + ROW + "a2,Another text.,ann1,4\na1,A text of some length.,ann2,2\n"


@dataclass(frozen=True)
class Bad:
    """A source that cannot be taken.

    Attributes:
        name: Of the test.
        content: Of the file.
        says: What the error line has to name.
        flags: Of the stage.
        file: Its name.
    """

    name: str
    content: str | bytes | Callable[[], bytes]
    says: Sequence[str]
    flags: Sequence[str] = ()
    file: str = "labels.csv"

    def bytes(self) -> bytes:
        made = self.content() if callable(self.content) else self.content
        return made.encode() if isinstance(made, str) else made


def jsonl(*records: object) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def zipped(name: str, content: bytes) -> bytes:
    with io.BytesIO() as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(name, content)
        return file.getvalue()


def parquet(columns: dict[str, list[object]]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    with io.BytesIO() as file:
        pyarrow.parquet.write_table(pyarrow.table(columns), file, compression="zstd")
        return file.getvalue()


def gzip_bomb() -> bytes:
    """Return two kilobytes that unpack to two megabytes of rows."""
    return gzip.compress((HEADER + ROW * 64_000).encode())


def parquet_bomb() -> bytes:
    """Return a small file whose rows share one long text, which each row unpacks to."""
    count = 3000
    return parquet(
        {"item_id": [str(n) for n in range(count)], "text": ["long " * 400] * count, "label": [1, 2, 3] * 1000}
    )


ITEM = {"item_id": "a1", "text": "A text.", "annotator": "ann1", "label": 3}

BAD = [
    # files
    Bad("empty", "", ["labels.csv", "is empty"]),
    Bad("header_alone", HEADER, ["labels.csv", "no row below its header"]),
    Bad("blank_lines_alone", "\n\n\n", ["labels.csv", "is empty"]),
    Bad("unknown_suffix", GOOD, ["labels.txt", "suffix", "csv, tsv"], file="labels.txt"),
    Bad("spreadsheet", GOOD, ["labels.XLSX", "spreadsheet", "as CSV"], file="labels.XLSX"),
    Bad("no_suffix", GOOD, ["labels", "suffix"], file="labels"),
    Bad("latin1", GOOD.replace("Another", "Aner\xe9e").encode("latin-1"), ["labels.csv line 3", "\\xe9", "--encoding"]),
    Bad("utf16_cut_off", GOOD.encode("utf-16")[:-1], ["labels.csv", "utf-16"]),
    Bad("zero_bytes", GOOD.replace("Another", "\0"), ["labels.csv line 3", "zero bytes"]),
    Bad("binary", bytes(range(256)) * 20, ["labels.csv line 1"]),
    Bad("not_gzip", GOOD, ["labels.csv.gz", "cannot be unpacked"], file="labels.csv.gz"),
    Bad("gzip_cut_off", gzip.compress(GOOD.encode())[:-9], ["labels.csv.gz", "cannot be unpacked"],
        file="labels.csv.gz"),
    Bad("gzip_broken", lambda: gzip.compress(os.urandom(9) * 99)[:40] + b"\xff" * 40, ["labels.csv.gz"],
        file="labels.csv.gz"),
    Bad("xz_broken", lzma.compress(GOOD.encode())[:-20], ["labels.csv.xz", "cannot be unpacked"],
        file="labels.csv.xz"),
    Bad("not_zip", GOOD, ["labels.zip", "cannot be unpacked"], file="labels.zip"),
    Bad("zip_of_nothing_known", lambda: zipped("picture.png", b"1234"), ["labels.zip", "no file that can be read"],
        file="labels.zip"),
    Bad("gzip_bomb", gzip_bomb, ["labels.csv.gz", "unpacks to more than 1 MiB", "--max-megabytes"],
        ["--max-megabytes", "1"], "labels.csv.gz"),
    Bad("zip_bomb", lambda: zipped("labels.csv", (HEADER + ROW * 64_000).encode()),
        ["labels.zip", "unpacks to more than 1 MiB"], ["--max-megabytes", "1"], "labels.zip"),
    Bad("parquet_bomb", parquet_bomb, ["labels.parquet", "unpacks to more than 1 MiB"], ["--max-megabytes", "1"],
        "labels.parquet"),
    Bad("not_parquet", GOOD, ["labels.parquet", "no Parquet file"], file="labels.parquet"),
    Bad("parquet_without_rows", lambda: parquet({"item_id": [], "text": [], "label": []}), ["labels.parquet", "no row"],
        file="labels.parquet"),
    Bad("long_line", HEADER + "a1,\"" + "x" * (2 << 20) + "\",ann1,3\n", ["labels.csv line 2", "longer than 1 MiB"],
        ["--max-line-megabytes", "1"]),
    Bad("long_json_line", jsonl({**ITEM, "text": "x" * (2 << 20)}), ["labels.jsonl line 1", "longer than 1 MiB"],
        ["--max-line-megabytes", "1"], "labels.jsonl"),
    # tables
    Bad("quote_not_closed", GOOD.replace("Another", '"Another'), ["labels.csv row 3", "does not end"]),
    Bad("nested_quotes", GOOD.replace("Another text.", '"Another "good" text."'), ["labels.csv row 3", 'twice: ""']),
    Bad("row_too_long", GOOD.replace("Another text.", "Another, text."), ["labels.csv row 3", "5 cells", "quotes"]),
    Bad("row_too_short", GOOD + "a3,Third text.\n", ["labels.csv row 5", "2 cells"]),
    Bad("rows_after_a_line_break", GOOD.replace("Another text.", '"Another\ntext."') + "a3\n",
        ["labels.csv row 5 (line 6)", "1 cell,"]),
    Bad("carriage_returns", GOOD.replace("\n", "\r"), ["labels.csv", "carriage return"]),
    Bad("column_twice", GOOD.replace("annotator", "label"), ["labels.csv row 1", "'label' stands twice"]),
    Bad("two_columns_without_names", GOOD.replace("item_id,text", ","),
        ["labels.csv row 1", "without a name", "row 2 has 'a1'"]),
    Bad("wrong_delimiter", GOOD.replace(",", ":"), ["labels.csv", "one column", "--delimiter"]),
    Bad("no_such_column", GOOD, ["--text reply", "no such column", "'item_id', 'text'"], ["--text", "reply"]),
    Bad("in_doubt", "uid,doc_id,text,label\n1,2,A text.,3\n", ["'uid'", "'doc_id'", "--item"]),
    Bad("no_label_column", GOOD.replace("label", "points"), ["labels.csv", "--label", "'points'"]),
    Bad("no_text_column", "item_id,label\n1,2\n2,3\n", ["labels.csv", "--text", "--items"]),
    # what rows say
    Bad("blank_id", GOOD.replace("a2,", " ,"), ["labels.csv row 3", "item_id is blank"]),
    Bad("blank_text", GOOD.replace("Another text.", "  "), ["labels.csv row 3", "blank"]),
    Bad("duplicate_id", GOOD.replace("a2,", "a1,"), ["labels.csv row 3", "'Another text.'", "row 2", "own id"]),
    Bad("two_rows_of_one_annotator", GOOD + "a2,Another text.,ann1,1\n",
        ["labels.csv row 5", "'ann1'", "'a2'", "row 3", "--duplicates"]),
    Bad("nobody_named_twice", "item_id,text,label\na,A text.,1\na,A text.,2\n",
        ["labels.csv row 3", "nothing says who", "--annotator"]),
    Bad("blank_annotator", GOOD.replace("Another text.,ann1", "Another text.,"),
        ["labels.csv row 3", "annotator is blank"]),
    Bad("mixed_types", GOOD.replace(",4\n", ",good\n"),
        ["labels.csv row 3", "'good'", "others are numbers", "--missing"]),
    Bad("decimal_comma", GOOD.replace(",4\n", ',"4,5"\n'), ["labels.csv row 3", "'4,5'", "write 4.5"]),
    Bad("decimal_commas_alone", "id;text;label\n1;A text.;3,5\n2;B text.;4,0\n3;C text.;2,5\n",
        ["labels.csv row 2", "'3,5'", "write 3.5"]),
    Bad("labels_joined_in_a_text", 'id,text,label\n1,A text.,joy\n2,B text.,anger\n3,C text.,"joy, anger"\n',
        ["labels.csv row 4", "'joy, anger'", "several labels"]),
    Bad("list_in_a_text", """id,text,label\n1,A text.,['joy']\n2,B text.,"['joy', 'anger']"\n""",
        ["labels.csv row 2", "['joy']", "list in a text"]),
    Bad("object_in_a_text", 'id;text;label\n1;A text.;{"choices": ["joy"]}\n2;B text.;anger\n',
        ["labels.csv row 2", "choices", "list in a text"], ["--no-quotes"]),
    Bad("off_the_scale", GOOD.replace(",4\n", ",7\n"), ["labels.csv row 3", "label 7", "1..5"], ["--scale", "1..5"]),
    Bad("off_the_names", GOOD.replace(",4\n", ",maybe\n").replace(",3\n", ",yes\n").replace(",2\n", ",no\n"),
        ["labels.csv row 3", "'maybe'", "yes/no"], ["--scale", "nominal:yes,no"]),
    Bad("one_label_alone", GOOD.replace(",4\n", ",3\n").replace(",2\n", ",3\n"),
        ["labels.csv", "all labels", "--scale"]),
    Bad("no_label_at_all", GOOD.replace(",4\n", ",\n").replace(",2\n", ",NA\n").replace(",3\n", ",null\n"),
        ["labels.csv", "no label"]),
    Bad("free_texts_as_labels", HEADER + "".join(f"a{n},Text {n} of many.,ann1,opinion {n}\n" for n in range(60)),
        ["labels.csv", "60 different texts", "--label"]),
    Bad("label_is_markup", GOOD.replace(",4\n", ",<b>\n").replace(",3\n", ",c\n").replace(",2\n", ",d\n"),
        ["labels.csv row 3", "'<b>'", "rename"]),
    Bad("formula_as_label", GOOD.replace(",4\n", ",=SUM(A1)\n"), ["labels.csv row 3", "'=SUM(A1)'", "formula"]),
    Bad("formula_as_id", GOOD.replace("a2,", "=A1&1,"), ["labels.csv row 3", "'=A1&1'", "formula"]),
    Bad("infinite_label", GOOD.replace(",4\n", ",1e999\n"), ["labels.csv row 3", "'1e999'"]),
    Bad("no_group", GOOD.replace("text,", "text,topic,", 1).replace("length.,", "length.,sport,").replace(
        "Another text.,", "Another text.,,"), ["labels.csv row 3", "'a2'", "topic"], ["--group-by", "topic"]),
    # JSON
    Bad("json_line_broken", jsonl(ITEM) + '{"item_id": "a2", \n', ["labels.jsonl line 2", "not JSON"],
        file="labels.jsonl"),
    Bad("json_line_no_object", jsonl(ITEM, [1, 2]), ["labels.jsonl line 2", "not a JSON object"], file="labels.jsonl"),
    Bad("json_line_nan", jsonl(ITEM, {**ITEM, "label": float("nan")}), ["labels.jsonl line 2", "NaN"],
        file="labels.jsonl"),
    Bad("json_line_surrogate", jsonl(ITEM, {**ITEM, "item_id": "a2", "text": "\ud800 a text", "label": 2}),
        ["labels.jsonl line 2", "surrogate"], file="labels.jsonl"),
    Bad("json_surrogate_label", jsonl(ITEM, {**ITEM, "item_id": "a2", "label": "\ud800"}),
        ["labels.jsonl line 2", "surrogate"], file="labels.jsonl"),
    Bad("argilla_metadata_a_number", jsonl({"id": "1", "fields": {"text": "A."}, "responses": {}, "metadata": 3}),
        ["labels.jsonl line 1", "metadata 3 is no object"], file="labels.jsonl"),
    Bad("argilla_responses_a_number", jsonl({"id": "1", "fields": {"text": "A."}, "responses": 0.5}),
        ["labels.jsonl line 1", "responses 0.5 is no list"], file="labels.jsonl"),
    Bad("prodigy_meta_a_text", jsonl({"text": "A.", "_task_hash": 1, "answer": "accept", "label": "X", "meta": "x"}),
        ["labels.jsonl line 1", "meta 'x' is no object"], file="labels.jsonl"),
    Bad("json_huge_label", jsonl(ITEM, {**ITEM, "item_id": "a2", "label": 10**400}),
        ["labels.jsonl line 2", "too large"], file="labels.jsonl"),
    Bad("json_infinite_label", jsonl(ITEM) + json.dumps({**ITEM, "item_id": "a2", "label": 7}).replace("7", "1e999"),
        ["labels.jsonl line 2", "too large"], file="labels.jsonl"),
    Bad("many_columns", ",".join(f"column{n}" for n in range(100_000)) + "\n" + "x," * 99_999 + "x\n",
        ["labels.csv", "--label", "and 99,990 more"]),
    Bad("parquet_of_bytes", lambda: parquet({"item_id": ["a"], "text": [b"\xff\x00"], "label": [1]}),
        ["labels.parquet row 1", "'text'", "bytes"], ["--text", "text"], "labels.parquet"),
    Bad("json_label_object", jsonl(ITEM, {**ITEM, "item_id": "a2", "label": {"value": 3}}), ["labels.jsonl line 2"],
        file="labels.jsonl"),
    Bad("json_several_labels", jsonl(ITEM, {**ITEM, "item_id": "a2", "label": [3, 4]}),
        ["labels.jsonl line 2", "several labels"], file="labels.jsonl"),
    Bad("json_document_broken", '[{"item_id": "a1",\n "text": }]', ["labels.json line 2", "not JSON"],
        file="labels.json"),
    Bad("json_too_deep", "[" * 200_000 + "]" * 200_000, ["labels.json", "not JSON"], file="labels.json"),
    Bad("json_list_of_numbers", "[1, 2]", ["labels.json record 1", "no object"], file="labels.json"),
]  # fmt: skip


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    leave_the_user(tmp_path, monkeypatch)
    return calls_of(STAGE, main, monkeypatch, capsys)


def test_there_are_forty_of_them() -> None:
    assert len(BAD) >= 40
    assert len({bad.name for bad in BAD}) == len(BAD)


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.name)
def test_a_malformed_source_is_one_line(bad: Bad, run: Run, tmp_path: Path) -> None:
    (tmp_path / bad.file).write_bytes(bad.bytes())
    refused_line(run, tmp_path, bad.file, "--out", "new/corpus", *bad.flags, names=bad.says)
    refused_line(run, tmp_path, bad.file, "--dry-run", *bad.flags, names=bad.says)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["missing.csv", "--out", "corpus"], ["missing.csv", "no such file"]),
        (["--out", "corpus"], ["SOURCE", "missing"]),
        (["labels.csv"], ["--out", "--dry-run"]),
        (["labels.csv", "--out", "labels.csv"], ["--out labels.csv", "is a file"]),
        (["labels.csv", "--out", "other"], ["--out other", "no corpus"]),
        (["labels.csv", "--out", "corpus", "--scale", "5..1"], ["--scale 5..1", "lower end"]),
        (["labels.csv", "--out", "corpus", "--scale", "good"], ["--scale good", "1..5"]),
        (["labels.csv", "--out", "corpus", "--scale", "clarity=1..5"], ["clarity", "label"]),
        (["labels.csv", "--out", "corpus", "--scale", "{type: ordinal, labels: [3, 1]}"], ["labels", "lowest"]),
        (["labels.csv", "--out", "corpus", "--scale", "pairwise:1,2"], ["--pair"]),
        (["labels.csv", "--out", "corpus", "--pair", "text"], ["--pair text", "two"]),
        (["labels.csv", "--out", "corpus", "--guideline", "none.md"], ["--guideline none.md", "no such file"]),
        (["labels.csv", "--out", "corpus", "--encoding", "klingon"], ["--encoding klingon"]),
        (["labels.csv", "--out", "corpus", "--annotators", "item{}d", "label"], ["--annotators label", "{} once"]),
        (["labels.csv", "--out", "corpus", "--annotators", "{}_{}"], ["--annotators {}_{}", "{} once"]),
        (["labels.csv", "--out", "corpus", "--annotators", "{}_"], ["--annotators {}_", "{}_rater1"]),
        (["labels.csv", "--out", "corpus", "--annotators", "{}_ann9"], ["--annotators {}_ann9", "no such column"]),
        (["labels.csv", "--out", "corpus", "--annotators", "{}el", "{}l"], ["--annotators {}l", "'label'", "el's"]),
        (["labels.csv", "--out", "corpus", "--delimiter", "::"], ["--delimiter ::", "one character"]),
        (["labels.csv", "--out", "corpus", "--format", "argilla"], ["labels.csv row 2", "fields and responses"]),
        (["labels.csv", "--out", "corpus", "--format", "hanna"], ["labels.csv row 2", "Story ID"]),
        (["labels.csv", "--out", "corpus", "--split", "train"], ["--split"]),
        (["labels.csv", "--out", "corpus", "--lable", "x"], ["--lable", "--label"]),
        (["labels.csv", "--out", "corpus", "--dimension", "clarity", "tone"], ["no label", "clarity, tone"]),
        (["labels.csv", "--out", "corpus", "--items", "labels.csv"], ["labels.csv row 4", "'a1'", "twice"]),
    ],
)  # fmt: skip
def test_options_that_do_not_go_are_one_line(
    flags: Sequence[str], says: Sequence[str], run: Run, tmp_path: Path
) -> None:
    (tmp_path / "labels.csv").write_text(GOOD)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    refused_line(run, tmp_path, *flags, names=says)


def test_another_corpus_is_not_written_over(run: Run, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text(GOOD)
    run("labels.csv", "--out", "corpus")
    before = snapshot(tmp_path / "corpus")
    again = run("labels.csv", "--out", "corpus")
    assert "this very corpus" in again.out
    assert snapshot(tmp_path / "corpus") == before
    (tmp_path / "labels.csv").write_text(GOOD + "a3,Third text.,ann1,1\n")
    line = refused_line(run, tmp_path, "labels.csv", "--out", "corpus", names=["corpus", "another corpus"])
    assert "items.jsonl" in line


def test_an_import_that_was_killed_leaves_nothing_in_the_way(run: Run, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text(GOOD)
    left = tmp_path / ".corpus.importing"
    (left / "guidelines").mkdir(parents=True)
    (left / "items.jsonl").write_text("half a line")
    run("labels.csv", "--out", "corpus")
    assert not left.exists()
    assert (tmp_path / "corpus" / "items.jsonl").read_text().count("\n") == 2


def test_two_imports_to_one_place_do_not_mix(run: Run, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text(GOOD)
    with scratch_folder(tmp_path / "corpus"):
        refused_line(run, tmp_path, "labels.csv", "--out", "corpus", names=["--out corpus", "another process"])
    run("labels.csv", "--out", "corpus")


@pytest.mark.slow
def test_a_line_of_two_gigabytes_takes_little_memory(tmp_path: Path) -> None:
    """The file is sparse: zero bytes without a line break, refused at the bound of a line."""
    import resource

    path = tmp_path / "labels.csv"
    with path.open("wb") as file:
        file.write(HEADER.encode())
        file.truncate(2 << 30)

    def little_memory() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (600 << 20, 600 << 20))

    outcome = run_alone(STAGE, path, "--out", tmp_path / "corpus", preexec_fn=little_memory)
    assert outcome.status == 2
    assert "line 2: longer than 64 MiB" in outcome.error_line
    assert not (tmp_path / "corpus").exists()
