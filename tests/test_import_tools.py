"""Exports of five annotation tools, in the shape in which each tool writes them."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from pipelines.import_corpus import STAGE, main
from tests.stage_runs import Run, calls_of, leave_the_user, read, refused_line
from tests.test_import_corpus import said, scale

Record = dict[str, Any]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    leave_the_user(tmp_path, monkeypatch)
    return calls_of(STAGE, main, monkeypatch, capsys)


def lines(*records: Record) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


# --- Label Studio -----------------------------------------------------------------------------------------


def result(kind: str, name: str, value: Record, to: str = "txt") -> Record:
    return {"id": "x1", "type": kind, "value": value, "origin": "manual", "to_name": to, "from_name": name}


def annotation(number: int, who: object, *results: Record, cancelled: bool = False) -> Record:
    return {
        "id": number, "completed_by": who, "result": list(results), "was_cancelled": cancelled, "ground_truth": False,
        "created_at": "2024-05-03T12:50:01.153034Z", "updated_at": "2024-05-03T12:50:01Z", "draft_created_at": None,
        "lead_time": 12.27, "prediction": {}, "result_count": len(results), "unique_id": "c2f0", "import_id": None,
        "last_action": None, "task": 1, "project": 3, "updated_by": 1, "parent_prediction": None,
        "last_created_by": None,
    }  # fmt: skip


def task(number: int, data: Record, *annotations: Record) -> Record:
    return {
        "id": number, "annotations": list(annotations), "file_upload": "0c6f-texts.csv", "drafts": [],
        "predictions": [{"result": [result("rating", "quality", {"rating": 1})], "model_version": "m1"}], "data": data,
        "meta": {}, "created_at": "2024-05-03T12:49:01Z", "updated_at": "2024-05-03T12:50:01Z", "inner_id": number,
        "total_annotations": len(annotations), "cancelled_annotations": 0, "total_predictions": 0, "comment_count": 0,
        "unresolved_comment_count": 0, "last_comment_updated_at": None, "project": 3, "updated_by": 1,
        "comment_authors": [],
    }  # fmt: skip


def choice(name: str, *labels: str) -> Record:
    return result("choices", name, {"choices": list(labels)})


LABEL_STUDIO = [
    task(1, {"text": "The first text to rate.", "source": "web", "nr": 7},
         annotation(11, 1, result("rating", "quality", {"rating": 4}), choice("tone", "kind")),
         annotation(12, {"id": 2, "email": "kim@example.org"}, result("rating", "quality", {"rating": 2})),
         annotation(13, 3, choice("tone", "rude"), cancelled=True)),
    task(2, {"text": "The second text to rate.", "source": "web", "nr": 8},
         annotation(14, 1, result("rating", "quality", {"rating": 5}), choice("tone", "rude"),
                    result("textarea", "why", {"text": ["Because."]}),
                    result("labels", "spans", {"start": 0, "end": 3, "text": "The", "labels": ["X"]}))),
]  # fmt: skip


def test_label_studio(run: Run, tmp_path: Path) -> None:
    (tmp_path / "project-3-at-2024.json").write_text(json.dumps(LABEL_STUDIO))
    printed = run("project-3-at-2024.json", "--out", "corpus").out
    assert "read as label-studio" in printed
    assert said(tmp_path / "corpus") == {
        ("1", "1", "quality", 4),
        ("1", "kim@example.org", "quality", 2),
        ("2", "1", "quality", 5),
        ("1", "1", "tone", "kind"),
        ("2", "1", "tone", "rude"),
    }
    assert read(tmp_path / "corpus" / "items.jsonl")[0] == {
        "item_id": "1",
        "inputs": {"text": "The first text to rate."},
        "metadata": {"nr": 7, "source": "web"},
    }
    assert scale(tmp_path / "corpus", "tone") == {"type": "nominal", "labels": ["kind", "rude"]}


def test_label_studio_pairs(run: Run, tmp_path: Path) -> None:
    def compared(number: int, selected: str) -> Record:
        data = {"text1": f"First of {number}.", "text2": f"Second of {number}."}
        return task(
            number, data, annotation(number, 1, result("pairwise", "pw", {"selected": selected}, "txt-1,txt-2"))
        )

    (tmp_path / "x.json").write_text(json.dumps([compared(1, "left"), compared(2, "right")]))
    run("x.json", "--pair", "text1", "text2", "--dimension", "pw", "--out", "corpus")
    expected = {"type": "pairwise", "labels": ["left", "right"], "fields": ["text1", "text2"]}
    assert scale(tmp_path / "corpus", "pw") == expected


def test_label_studio_of_several_choices_is_refused(run: Run, tmp_path: Path) -> None:
    data = {"text": "The text to rate."}
    tasks = [
        task(1, data, annotation(1, 1, choice("tone", "kind"))),
        task(2, {"text": "B."}, annotation(2, 1, choice("tone", "kind", "rude"))),
    ]
    (tmp_path / "x.json").write_text(json.dumps(tasks))
    refused_line(run, tmp_path, "x.json", "--out", "c", names=["x.json record 2", "'kind', 'rude'", "several labels"])


# --- Argilla ----------------------------------------------------------------------------------------------


def argilla(number: int, ratings: list[tuple[str, int]]) -> Record:
    return {
        "id": f"record-{number}",
        "fields": {"prompt": "What is it?", "response": f"It is number {number}."},
        "metadata": {"model": "m1"},
        "suggestions": {"rating": {"value": 1, "score": 0.9, "agent": "m2"}},
        "responses": {"rating": [{"value": value, "user_id": user} for user, value in ratings]},
        "vectors": {},
        "_server_id": f"5f7e-{number}",
    }


ARGILLA_SAID = {
    ("record-1", "u-1", "rating", 3),
    ("record-1", "u-2", "rating", 4),
    ("record-2", "u-1", "rating", 1),
}


def test_argilla_nested(run: Run, tmp_path: Path) -> None:
    """As `dataset.records.to_json` writes it."""
    records = [argilla(1, [("u-1", 3), ("u-2", 4)]), argilla(2, [("u-1", 1)]), argilla(3, [])]
    (tmp_path / "x.json").write_text(json.dumps(records))
    assert "read as argilla" in run("x.json", "--out", "corpus").out
    assert said(tmp_path / "corpus") == ARGILLA_SAID
    assert read(tmp_path / "corpus" / "items.jsonl")[2] == {
        "item_id": "record-3",
        "inputs": {"prompt": "What is it?", "response": "It is number 3."},
        "metadata": {"model": "m1"},
    }


def test_argilla_flat(run: Run, tmp_path: Path) -> None:
    """As `dataset.records.to_datasets` has it; a draft is no answer."""
    flat = {"status": "completed", "_server_id": "5f7e", "prompt": "What is it?", "model": "m1",
            "rating.suggestion": 1, "rating.suggestion.score": None, "rating.suggestion.agent": None}  # fmt: skip
    rows = [
        {**flat, "id": "record-1", "response": "It is number 1.", "rating.responses": [3, 4, 5],
         "rating.responses.users": ["u-1", "u-2", "u-3"],
         "rating.responses.status": ["submitted", "submitted", "draft"]},
        {**flat, "id": "record-2", "response": "It is number 2.", "rating.responses": [1],
         "rating.responses.users": ["u-1"], "rating.responses.status": ["submitted"]},
        {**flat, "id": "record-3", "response": "It is number 3.", "rating.responses": None,
         "rating.responses.users": None, "rating.responses.status": None},
    ]  # fmt: skip
    (tmp_path / "x.jsonl").write_text(lines(*rows))
    run("x.jsonl", "--text", "prompt", "response", "--out", "corpus")
    assert said(tmp_path / "corpus") == ARGILLA_SAID


def test_argilla_1(run: Run, tmp_path: Path) -> None:
    def record(number: int, *answers: tuple[str, int, str]) -> Record:
        responses = [
            {"user_id": user, "values": {"rating": {"value": value}}, "status": status}
            for user, value, status in answers
        ]
        fields = {"prompt": "What is it?", "response": f"It is number {number}."}
        return {"fields": fields, "metadata": {}, "responses": responses, "external_id": f"record-{number}"}

    first = record(1, ("u-1", 3, "submitted"), ("u-2", 4, "submitted"), ("u-3", 9, "discarded"))
    (tmp_path / "x.jsonl").write_text(lines(first, record(2, ("u-1", 1, "submitted"))))
    run("x.jsonl", "--out", "corpus")
    assert said(tmp_path / "corpus") == ARGILLA_SAID


# --- doccano ----------------------------------------------------------------------------------------------


def test_doccano_with_a_file_for_each_person(run: Run, tmp_path: Path) -> None:
    with io.BytesIO() as file:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("eva.jsonl", lines({"id": 1, "text": "One text.", "label": ["good"], "Comments": []},
                                                {"id": 2, "text": "Two texts.", "label": []}))  # fmt: skip
            archive.writestr("kim.jsonl", lines({"id": 1, "text": "One text.", "label": ["bad"], "lang": "en"},
                                                {"id": 2, "text": "Two texts.", "label": ["bad"]}))  # fmt: skip
        (tmp_path / "export.zip").write_bytes(file.getvalue())
    assert "read as doccano" in run("export.zip", "--dimension", "tone", "--out", "corpus").out
    assert said(tmp_path / "corpus") == {
        ("1", "eva", "tone", "good"),
        ("1", "kim", "tone", "bad"),
        ("2", "kim", "tone", "bad"),
    }
    assert read(tmp_path / "corpus" / "items.jsonl")[0]["metadata"] == {"lang": "en"}


def test_doccano_of_spans_is_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "all.jsonl").write_text(lines({"id": 1, "text": "In Paris.", "label": [[3, 8, "LOC"]]}))
    refused_line(run, tmp_path, "all.jsonl", "--out", "c", names=["all.jsonl line 1", "part of the text"])


# --- Potato -----------------------------------------------------------------------------------------------


def potato(number: int, labels: Record) -> Record:
    return {"id": f"item_{number}", "displayed_text": f"Text {number} of a few.", "label_annotations": labels,
            "span_annotations": {}, "behavioral_data": {"time_string": "Time spent: 0d 0h 0m 5s "}}  # fmt: skip


def test_potato_with_a_folder_for_each_user(run: Run, tmp_path: Path) -> None:
    for user, first, second in (("eva@example.org", "scale_3", "positive"), ("kim@example.org", "scale_5", "neutral")):
        folder = tmp_path / "annotation_output" / user
        folder.mkdir(parents=True)
        (folder / "annotated_instances.jsonl").write_text(
            lines(
                potato(1, {"likert": {first: first[-1]}, "sentiment": {second: "true"}}),
                potato(2, {"likert": {"scale_4": "4"}, "why": {"text_box": "It is."}}),
            )
        )
        (folder / "annotation_order.txt").write_text("item_1\nitem_2\n")
        (folder / "user_state.json").write_text("{}")
    assert "read as potato" in run("annotation_output", "--out", "corpus").out
    assert said(tmp_path / "corpus") == {
        ("item_1", "eva@example.org", "likert", 3),
        ("item_1", "kim@example.org", "likert", 5),
        ("item_2", "eva@example.org", "likert", 4),
        ("item_2", "kim@example.org", "likert", 4),
        ("item_1", "eva@example.org", "sentiment", "positive"),
        ("item_1", "kim@example.org", "sentiment", "neutral"),
    }


POTATO_SAID = {("item_1", "eva", "quality", 2), ("item_2", "eva", "quality", 5), ("item_1", "kim", "quality", 3)}


def test_potatos_own_export_takes_texts_from_the_data_file(run: Run, tmp_path: Path) -> None:
    def row(item: str, user: str, label: str) -> Record:
        return {"instance_id": item, "user_id": user, "labels": {"quality": {label: label}}, "spans": {}, "links": {}}

    (tmp_path / "annotations.jsonl").write_text(
        lines(row("item_1", "eva", "2"), row("item_2", "eva", "5"), row("item_1", "kim", "3"))
    )
    (tmp_path / "data.json").write_text(
        lines({"id": "item_1", "text": "One text."}, {"id": "item_2", "text": "Two texts."})
    )
    refused_line(run, tmp_path, "annotations.jsonl", "--out", "c", names=["without texts", "--items"])
    (tmp_path / "data.json").rename(tmp_path / "data.jsonl")
    run("annotations.jsonl", "--items", "data.jsonl", "--out", "corpus")
    assert said(tmp_path / "corpus") == POTATO_SAID


def test_potatos_user_states(run: Run, tmp_path: Path) -> None:
    for user, labels in (("eva", {"item_1": "2", "item_2": "5"}), ("kim", {"item_1": "3"})):
        folder = tmp_path / "annotation_output" / user
        folder.mkdir(parents=True)
        state = {
            "user_id": user,
            "instance_id_to_label_to_value": {
                item: {"quality": {"labels": {label: True}}} for item, label in labels.items()
            },
            "instance_id_to_span_to_value": {},
        }
        (folder / "user_state.json").write_text(json.dumps(state))
    (tmp_path / "data.csv").write_text("id,text\nitem_1,One text.\nitem_2,Two texts.\n")
    run("annotation_output", "--items", "data.csv", "--out", "corpus")
    assert said(tmp_path / "corpus") == POTATO_SAID


# --- Prodigy ----------------------------------------------------------------------------------------------


def prodigy(number: int, who: str, **more: Any) -> Record:
    return {"text": f"Text {number} of a few.", "meta": {"source": "web"}, "_input_hash": 1000 + number,
            "_task_hash": -2000 - number, "_is_binary": False, "_timestamp": 1707211049,
            "_annotator_id": f"db-{who}", "_session_id": f"db-{who}", **more}  # fmt: skip


def test_prodigy_choices(run: Run, tmp_path: Path) -> None:
    options = [{"id": "good", "text": "Good"}, {"id": "bad", "text": "Bad"}]
    shared = {"options": options, "_view_id": "choice", "config": {"choice_style": "single"}}
    (tmp_path / "annotations.jsonl").write_text(
        lines(
            prodigy(1, "eva", **shared, accept=["good"], answer="accept"),
            prodigy(1, "kim", **shared, accept=["bad"], answer="accept"),
            prodigy(2, "eva", **shared, accept=["bad"], answer="accept"),
            prodigy(2, "kim", **shared, accept=[], answer="ignore"),
        )
    )
    printed = run("annotations.jsonl", "--dimension", "quality", "--out", "corpus").out
    assert "read as prodigy" in printed
    assert "missing labels  1 on quality" in printed
    assert said(tmp_path / "corpus") == {
        ("1001", "db-eva", "quality", "good"),
        ("1001", "db-kim", "quality", "bad"),
        ("1002", "db-eva", "quality", "bad"),
    }


def test_prodigy_yes_or_no(run: Run, tmp_path: Path) -> None:
    shared = {"label": "SPAM", "_view_id": "classification", "score": 0.5}
    (tmp_path / "annotations.jsonl").write_text(
        lines(
            prodigy(1, "eva", **shared, answer="accept"),
            prodigy(2, "eva", **shared, answer="reject"),
            prodigy(3, "eva", **shared, answer="ignore"),
        )
    )
    run("annotations.jsonl", "--out", "corpus")
    assert said(tmp_path / "corpus") == {("1001", "db-eva", "SPAM", "accept"), ("1002", "db-eva", "SPAM", "reject")}


@pytest.mark.parametrize("kind", ["label-studio", "argilla", "potato", "prodigy", "doccano"])
def test_what_is_none_of_a_tools_records_is_refused_with_its_place(kind: str, run: Run, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text(lines({"id": 1, "text": "A text.", "label": 3}))
    refused_line(run, tmp_path, "x.jsonl", "--format", kind, "--items", "x.jsonl", "--out", "c", names=["line 1"])
